"""The tokenizer interface, and loading a tokenizer of either kind from a checkpoint's files.

`WordTokenizer` has a vocabulary of words from captions; `BpeTokenizer` is GPT-2's byte-level BPE.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from captioning.data.bpe_tokenizer import BpeTokenizer
from captioning.data.tokenizer_files import MERGES_FILE, TOKENIZER_FILE, VOCAB_FILE, VOCABULARY_FILE
from captioning.data.word_tokenizer import WordTokenizer
from captioning.errors import CheckpointError, SettingsError

__all__ = ["BpeTokenizer", "Tokenizer", "WordTokenizer", "encode_prompt", "load_tokenizer"]


class Tokenizer(Protocol):
    """Captions to token ids and back. Picklable."""

    @property
    def kind(self) -> str:
        """`word` or `bpe`."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        ...

    @property
    def bos_id(self) -> int:
        """The token that starts a caption, the decoder's first input. May equal `eos_id`."""
        ...

    @property
    def eos_id(self) -> int:
        """The token that ends a caption."""
        ...

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Ids that decoding must never emit (unknown word, BOS, pad). Never contains `eos_id`."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a checkpoint's folder."""
        ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer whose files are in `folder`. Raises `CheckpointError` if they are missing or damaged."""
    if (folder / VOCABULARY_FILE).is_file():
        return WordTokenizer.load(folder)
    if (folder / TOKENIZER_FILE).is_file() or (folder / VOCAB_FILE).is_file():
        return BpeTokenizer.from_pretrained_folder(folder)
    raise CheckpointError(
        f"No tokenizer in {folder}: expected {VOCABULARY_FILE} (words), {TOKENIZER_FILE}, or {VOCAB_FILE} with "
        f"{MERGES_FILE} (byte-level BPE). Is the folder a checkpoint, and was it copied completely?"
    )


def encode_prompt(tokenizer: Tokenizer, prompt: str | None) -> list[int]:
    """Ids of a prompt; empty for None. Raises `SettingsError` for words that the tokenizer cannot encode."""
    ids = tokenizer.encode(prompt) if prompt else []
    if prompt and not set(tokenizer.banned_ids).isdisjoint(ids):
        unknown = tokenizer.unknown_words([prompt]) if isinstance(tokenizer, WordTokenizer) else ()
        named = ", ".join(map(repr, unknown)) or "special tokens"
        raise SettingsError(
            f"decoding.prompt is {prompt!r}, but this captioner has no word for {named}: captions would continue "
            "without it. Use words of its training captions, or a captioner that can spell any word (CLIP-GPT2)."
        )
    return ids
