"""Byte-level BPE in the manner of GPT-2: from a checkpoint's files, or learned from captions.

One token, `<|endoftext|>`, both begins and ends a caption. A caption is encoded with a space in
front, so that its first word is the same token as inside a sentence; decoding takes it off.
Nothing is downloaded here.
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
    """GPT-2's kind of tokenizer: any text can be written, so nothing is ever unknown.

    `banned_ids` are the special tokens other than the end, if the files have any (a pad token).
    """

    kind = "bpe"

    def __init__(self, backend: Backend) -> None:
        """`backend` is a byte-level BPE that has the token `<|endoftext|>`. Raises `ValueError` otherwise."""
        end = backend.token_to_id(_END)
        if end is None:
            raise ValueError(f"it has no token {_END}, which begins and ends a caption")
        # Known already, it keeps its id; declared special, it is left out of decoded text.
        backend.add_special_tokens([_END])
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.bos_id = self.eos_id = int(end)
        specials = backend.get_added_tokens_decoder().items()
        self.banned_ids: tuple[int, ...] = tuple(sorted(n for n, token in specials if token.special and n != end))

    @classmethod
    def from_pretrained_folder(cls, folder: Path) -> "BpeTokenizer":
        """From `tokenizer.json`, or `vocab.json` with `merges.txt`, as GPT-2's repository has them.

        Raises `CheckpointError` when they are missing or damaged.
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
        # The backend raises plain Exception for files that it cannot read.
        except Exception as error:
            raise CheckpointError(
                f"The tokenizer in {folder} cannot be used: {error}. Copy its files from the model's repository again."
            ) from error

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, *, lowercase: bool = False) -> "BpeTokenizer":
        """Learn at most `vocab_size` tokens (at least 257: all bytes and the end) from `captions`.

        With `lowercase` text is read in lower case, without a full stop at its end: the same words
        in fewer tokens. The files keep it.
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
        backend.train_from_iterator((_prepared(caption) for caption in captions), trainer)
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of `text` with a space in front; no special token is added, none can be smuggled in."""
        prepared = _prepared(text)
        return list(self._backend.encode(prepared, add_special_tokens=False).ids) if prepared else []

    def decode(self, ids: Iterable[int]) -> str:
        """The caption that `ids` spell; special tokens and characters cut in two are left out."""
        text = self._backend.decode(list(ids), skip_special_tokens=True)
        return tidy(text.replace("\N{REPLACEMENT CHARACTER}", ""))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` into `folder`, which is made when missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENIZER_FILE).write_text(self._backend.to_str(pretty=False) + "\n", encoding="utf-8")


def _byte_level(model: models.BPE) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _prepared(text: str) -> str:
    """A caption as it is encoded: no odd spaces, one in front; empty when nothing is left."""
    clean = tidy(text.replace(_END, " "))
    return f" {clean}" if clean else ""
