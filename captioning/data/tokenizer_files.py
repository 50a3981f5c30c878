"""Names of the files in a checkpoint that hold its tokenizer, by which its kind is recognised."""

#: A vocabulary of whole words.
VOCABULARY_FILE = "vocabulary.json"
#: A byte-level BPE: all in one, or GPT-2's original pair.
TOKENIZER_FILE = "tokenizer.json"
VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"

TOKENIZER_FILES = (VOCABULARY_FILE, TOKENIZER_FILE, VOCAB_FILE, MERGES_FILE)
