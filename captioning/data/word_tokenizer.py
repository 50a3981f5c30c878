"""A tokenizer with a vocabulary of words, built from captions and saved as one small JSON file."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from captioning.data.tokenizer_files import VOCABULARY_FILE
from captioning.data.words import join_words, split_words
from captioning.errors import CheckpointError

#: Special tokens in the order of their ids.
_SPECIALS = ("<bos>", "<eos>", "<unk>")


class WordTokenizer:
    """Lower-case words and clitics to ids: 0 is BOS, 1 EOS, 2 any unknown word.

    `banned_ids` are BOS and the unknown word, which may occur in a model's input but never in its output.
    """

    kind = "word"
    bos_id = 0
    eos_id = 1
    unk_id = 2
    banned_ids: tuple[int, ...] = (bos_id, unk_id)

    def __init__(self, words: Sequence[str]) -> None:
        """`words` is the vocabulary without the special tokens, in the order of ids."""
        self.words = tuple(words)
        self._ids = {word: number for number, word in enumerate(self.words, start=len(_SPECIALS))}
        if len(self._ids) != len(self.words):
            raise ValueError("A vocabulary must not contain a word twice.")

    @classmethod
    def train(cls, captions: Iterable[str], min_count: int = 5) -> "WordTokenizer":
        """Build the vocabulary of all words that occur at least `min_count` times, most frequent first.

        Raises `ValueError` if no word is left.
        """
        counts = Counter(word for caption in captions for word in split_words(caption))
        words = [word for word, count in counts.items() if count >= min_count]
        if not words:
            raise ValueError(
                f"No word occurs {min_count} times in the captions ({len(counts)} different words): lower min_count."
            )
        return cls(sorted(words, key=lambda word: (-counts[word], word)))

    def unknown_words(self, captions: Iterable[str]) -> Counter[str]:
        """The words of `captions` that the vocabulary lacks, with their counts."""
        return Counter(word for caption in captions for word in split_words(caption) if word not in self._ids)

    def with_words(self, words: Iterable[str]) -> "WordTokenizer":
        """A tokenizer with `words` appended to the vocabulary. Existing ids do not change."""
        return WordTokenizer([*self.words, *words])

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return len(_SPECIALS) + len(self.words)

    def encode(self, text: str) -> list[int]:
        """Ids of the words of `text`, without BOS and EOS."""
        return [self._ids.get(word, self.unk_id) for word in split_words(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The caption of `ids`, without special tokens."""
        first = len(_SPECIALS)
        return join_words(self.words[number - first] for number in ids if number >= first)

    def save(self, folder: Path) -> None:
        """Write the vocabulary into `folder`, which is created if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"format_version": 1, "kind": self.kind, "specials": list(_SPECIALS), "words": list(self.words)}
        text = json.dumps(content, ensure_ascii=False, indent=0)
        (folder / VOCABULARY_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "WordTokenizer":
        """Load a vocabulary that `save` wrote. Raises `CheckpointError`."""
        path = folder / VOCABULARY_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            words = content["words"]
            if content["specials"] != list(_SPECIALS) or not all(isinstance(word, str) for word in words):
                raise ValueError("its tokens are not those of a word vocabulary")
            return cls(words)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"missing {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(
                f"The vocabulary {path} cannot be read ({reason}). Copy the checkpoint again, or save it again."
            ) from error
