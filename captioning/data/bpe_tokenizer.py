"""Byte-level BPE as in GPT-2, loaded from a checkpoint's files or trained on captions.

One token, `<|endoftext|>`, is both BOS and EOS. Captions are encoded with a leading space, so that the first word
is the same token as inside a sentence; decoding removes it. Nothing is downloaded here.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from captioning.data.tokenizer_files import MERGES_FILE, TOKENIZER_FILE, VOCAB_FILE
from captioning.data.words import tidy
from captioning.errors import CheckpointError

_END = "<|endoftext|>"
_LAST_STOP = Regex(r"[\s.]+$")


class BpeTokenizer:
    """A byte-level BPE tokenizer, which can encode any text, so no word is unknown.

    `banned_ids` are special tokens other than EOS, if there are any (a pad token).
    """

    kind = "bpe"

    def __init__(self, backend: Backend) -> None:
        """`backend` is a byte-level BPE. Raises `ValueError` if it lacks the token `<|endoftext|>`."""
        end = backend.token_to_id(_END)
        if end is None:
            raise ValueError(f"it has no token {_END}, which begins and ends a caption")
        # Keeps the token's id, and makes decoding skip it.
        backend.add_special_tokens([_END])
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.bos_id = self.eos_id = int(end)
        specials = backend.get_added_tokens_decoder().items()
        self.banned_ids: tuple[int, ...] = tuple(sorted(n for n, token in specials if token.special and n != end))

    @classmethod
    def from_pretrained_folder(cls, folder: Path) -> "BpeTokenizer":
        """Load `tokenizer.json`, or `vocab.json` with `merges.txt` as in GPT-2's repository.

        Raises `CheckpointError` if they are missing or damaged.
        """
        whole, vocab, merges = folder / TOKENIZER_FILE, folder / VOCAB_FILE, folder / MERGES_FILE
        if not whole.is_file() and not (vocab.is_file() and merges.is_file()):
            raise CheckpointError(
                f"No byte-level BPE in {folder}: expected {TOKENIZER_FILE}, or {VOCAB_FILE} and {MERGES_FILE}. "
                "Copy them from the model's repository."
            )
        try:
            if whole.is_file():
                return cls(Backend.from_file(str(whole)))
            return cls(_byte_level(models.BPE.from_file(str(vocab), str(merges))))
        # The backend raises plain Exception for unreadable files.
        except Exception as error:
            raise CheckpointError(
                f"The tokenizer in {folder} cannot be used: {error}. Copy its files from the model's repository again."
            ) from error

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, *, lowercase: bool = False) -> "BpeTokenizer":
        """Train on `captions`, with at most `vocab_size` tokens (at least 257: all bytes and EOS).

        With `lowercase` the tokenizer lower-cases text and removes a full stop at its end, which saves tokens. This
        is saved in its files.
        """
        if vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257 (all bytes and the end), not {vocab_size}.")
        backend = _byte_level(models.BPE())
        if lowercase:
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(_LAST_STOP, "")])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[_END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator((_normalise(caption) for caption in captions), trainer)
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of `text` with a leading space. No special token is added, and none in `text` is recognised."""
        normalised = _normalise(text)
        return list(self._backend.encode(normalised, add_special_tokens=False).ids) if normalised else []

    def decode(self, ids: Iterable[int]) -> str:
        """The caption of `ids`, without special tokens and incomplete characters."""
        text = self._backend.decode(list(ids), skip_special_tokens=True)
        return tidy(text.replace("\N{REPLACEMENT CHARACTER}", ""))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` into `folder`, which is created if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENIZER_FILE).write_text(self._backend.to_str(pretty=False) + "\n", encoding="utf-8")


def _byte_level(model: models.BPE) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _normalise(text: str) -> str:
    """A caption with tidy spaces and a leading one; empty if nothing is left."""
    clean = tidy(text.replace(_END, " "))
    return f" {clean}" if clean else ""
