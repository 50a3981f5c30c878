"""Names of a checkpoint's tokenizer files, which tell its kind."""

#: A vocabulary of words.
VOCABULARY_FILE = "vocabulary.json"
#: A byte-level BPE: a single file, or GPT-2's original two.
TOKENIZER_FILE = "tokenizer.json"
VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"

TOKENIZER_FILES = (VOCABULARY_FILE, TOKENIZER_FILE, VOCAB_FILE, MERGES_FILE)
