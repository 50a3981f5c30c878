"""Samples to batches: pixels decoded and mirrored, captions as padded token ids, read ahead in a thread.

What a batch holds depends on (seed, epoch, place) alone, so that a resumed run sees what it would have seen.
"""

import queue
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from captioning.data.preprocess import Preprocess
from captioning.data.shards import Sample
from captioning.data.tokenizers import Tokenizer
from captioning.errors import ImageError, InputError
from captioning.models.base import PAD_TARGET

T = TypeVar("T")
_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Batch:
    """Images with their captions.

    `pixels` (B, S, S, 3) uint8; `captions` (N, T) long, with EOS, padded with `PAD_TARGET`;
    `images` (N,) long, the row of `pixels` that each caption describes.
    """

    keys: tuple[str, ...]
    pixels: Tensor
    captions: Tensor
    images: Tensor

    @property
    def num_targets(self) -> int:
        """Tokens to learn from."""
        return int((self.captions != PAD_TARGET).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return Batch(self.keys, self.pixels.to(device), self.captions.to(device), self.images.to(device))


class BatchMaker:
    """Makes batches as the settings ask: the same preprocessing as in captioning, then mirroring."""

    def __init__(self, preprocess: Preprocess, tokenizer: Tokenizer, *, max_tokens: int, flip: bool, seed: int) -> None:
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._flip = flip
        self._seed = seed

    def make(self, samples: list[Sample], epoch: int) -> Batch:
        """A batch of `samples` as `epoch` sees them. Raises `InputError` for an image that cannot be decoded."""
        pixels = [self._pixels(sample, epoch) for sample in samples]
        captions = [self._tokens(caption) for sample in samples for caption in sample.captions]
        images = [at for at, sample in enumerate(samples) for _ in sample.captions]
        padded = torch.full((len(captions), max(map(len, captions))), PAD_TARGET)
        for row, tokens in zip(padded, captions, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return Batch(
            tuple(sample.key for sample in samples), torch.from_numpy(np.stack(pixels)), padded, torch.tensor(images)
        )

    def _tokens(self, caption: str) -> list[int]:
        return [*self._tokenizer.encode(caption)[: self._max_tokens - 1], self._tokenizer.eos_id]

    def _pixels(self, sample: Sample, epoch: int) -> np.ndarray[Any, Any]:
        pixels = decode_sample(sample, self._preprocess)
        if self._flip and self._coin(sample.key, epoch) and not any(map(_SIDED.search, sample.captions)):
            pixels = pixels[:, ::-1]
        return pixels

    def _coin(self, key: str, epoch: int) -> bool:
        # By key, not by place: no matter which worker sees the image.
        return bool(zlib.crc32(f"{self._seed}/{epoch}/{key}".encode()) >> 16 & 1)


def decode_sample(sample: Sample, preprocess: Preprocess) -> np.ndarray[Any, Any]:
    """The pixels (S, S, 3) of a sample. Raises `InputError` that names it."""
    try:
        return preprocess.from_bytes(sample.image).pixels
    except ImageError as error:
        raise InputError(f"The training image {sample.key!r} cannot be decoded: {error.message}") from error


def grouped(samples: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    group: list[T] = []
    for sample in samples:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def read_ahead(make: Callable[[], Iterator[T]], depth: int = 3) -> Iterator[T]:
    """The items of `make()`, made in a thread up to `depth` ahead; its errors are raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(done: bool, item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put((done, item), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in make():
                if not put(False, item):
                    return
            put(True, None)
        except BaseException as error:
            put(True, error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            done, item = ready.get()
            if done:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        stopped.set()
        thread.join()
