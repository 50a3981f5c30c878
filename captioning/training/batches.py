"""From samples to batches: pixels decoded, mirrored and cropped, captions as padded token ids; prefetched in a thread.

A batch depends on its samples and (seed, epoch) alone, so a resumed run sees the same batches.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from captioning.data.augment import PLAIN, Augment, View
from captioning.data.preprocess import Preprocess
from captioning.data.shards import Sample
from captioning.data.tokenizers import Tokenizer
from captioning.errors import ImageError, InputError
from captioning.models.base import PAD_TARGET, CaptionModel
from captioning.training.crops import quick_crop
from captioning.training.feature_cache import CachedSample

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Images with their captions, or captions alone.

    `pixels` (B, S, S, 3) uint8, or `stem` (B, …) float16, the output of the encoder's frozen part from a
    feature cache; neither for captions alone. `captions` (N, T) long, with EOS, padded with `PAD_TARGET`;
    `image_index` (N,) long, the row of the image that each caption describes; `references` the B images'
    captions as text; `position` the slice of the step and the pass (micro-batch) within it.
    """

    keys: tuple[str, ...]
    pixels: Tensor | None
    captions: Tensor
    image_index: Tensor
    references: tuple[tuple[str, ...], ...] = ()
    stem: Tensor | None = None
    position: tuple[int, int] = (0, 0)

    @property
    def num_targets(self) -> int:
        """Number of target tokens."""
        return int((self.captions != PAD_TARGET).sum())

    def stem_of(self, model: CaptionModel) -> Tensor:
        """The output of the model's stem, the frozen part of its encoder."""
        if self.stem is not None:
            return self.stem
        assert self.pixels is not None, "captions alone have no images"
        return model.stem(self.pixels)

    def features(self, model: CaptionModel) -> Any:
        """The images' features, as the model's `forward` takes them."""
        return model.encode_stem(self.stem_of(model))

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; a pinned one is copied asynchronously."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        pixels, stem = (None if tensor is None else function(tensor) for tensor in (self.pixels, self.stem))
        captions, image_index = function(self.captions), function(self.image_index)
        return Batch(self.keys, pixels, captions, image_index, self.references, stem, self.position)


class Collator:
    """Makes batches of samples. Images are preprocessed as in captioning, after augmentation."""

    def __init__(self, preprocess: Preprocess, tokenizer: Tokenizer, augment: Augment, *, max_tokens: int) -> None:
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self._augment = augment
        self._max_tokens = max_tokens

    def collate(self, samples: Sequence[Sample | CachedSample], epoch: int) -> Batch:
        """A batch of `samples`, augmented for `epoch`. Raises `InputError` for an image that cannot be decoded."""
        references = tuple(sample.captions for sample in samples)
        captions = self._padded([caption for each in references for caption in each])
        image_index = torch.tensor([row for row, each in enumerate(references) for _ in each])
        keys = tuple(sample.key for sample in samples)
        stems = [sample.stem for sample in samples if isinstance(sample, CachedSample)]
        if stems:
            return Batch(keys, None, captions, image_index, references, torch.from_numpy(np.stack(stems)))
        pixels = [self._pixels(sample, epoch) for sample in samples if isinstance(sample, Sample)]
        return Batch(keys, torch.from_numpy(np.stack(pixels)), captions, image_index, references)

    def collate_text(self, captions: Sequence[str]) -> Batch:
        """A batch of captions without images."""
        return Batch((), None, self._padded(captions), torch.arange(len(captions)))

    def _padded(self, captions: Sequence[str]) -> Tensor:
        tokens = [self._tokens(caption) for caption in captions]
        padded = np.full((len(tokens), max(map(len, tokens))), PAD_TARGET)
        for row, ids in zip(padded, tokens, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(padded)

    def _tokens(self, caption: str) -> list[int]:
        # A caption that is truncated has no EOS.
        return [*self._tokenizer.encode(caption), self._tokenizer.eos_id][: self._max_tokens]

    def _pixels(self, sample: Sample, epoch: int) -> np.ndarray[Any, Any]:
        view = self._augment.epoch_view(sample.key, sample.captions, epoch)
        return decode_sample(sample, self._preprocess, view)


def decode_sample(sample: Sample, preprocess: Preprocess, view: View | None = None) -> np.ndarray[Any, Any]:
    """The pixels (S, S, 3) of a sample, or of a view of it. Raises `InputError` naming the sample."""
    try:
        if view is not None and view.box != PLAIN.box:
            return quick_crop(sample.image, preprocess.settings, view)
        return preprocess.from_bytes(sample.image, view).pixels
    except ImageError as error:
        raise InputError(f"The training image {sample.key!r} cannot be decoded: {error.message}") from error


def batched(samples: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` samples; the last one may be shorter."""
    batch: list[T] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def prefetch(make: Callable[[], Iterator[T]], depth: int = 3) -> Iterator[T]:
    """The items of `make()`, produced in a thread up to `depth` ahead; its errors are raised here."""
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

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
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
