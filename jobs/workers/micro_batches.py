"""The captioner on one shard's pixels, in micro-batches: out of memory, failing images, hanging calls.

Memory that does not suffice halves the micro-batch, for good. An image that the captioner fails on
costs that image; a captioner that fails on anything ends the run. Which of the two it is, a grey
picture tells. Knows nothing of shards, rows and Ray.
"""

import gc
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from captioning.errors import ImageError, UnfinishedError

Pixels = np.ndarray[Any, Any]

#: How a process ends that its watchdog, or a broken GPU context, ends.
HUNG, BROKEN = 70, 71


class CaptionLike(Protocol):
    """What is read of a caption: see `captioning.captioner.Caption`."""

    @property
    def text(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def alternatives(self) -> tuple[tuple[str, float], ...]: ...


class CaptionerLike(Protocol):
    """What is asked of a captioner here: see `captioning.captioner.Captioner`."""

    @property
    def name(self) -> str: ...

    def caption_pixels(self, pixels: Pixels, *, batch_size: int) -> Sequence[CaptionLike]:
        """A caption for each of the pixels (B, S, S, 3) uint8."""
        ...


class MicroBatches:
    """A captioner with the size of its micro-batches, which shrinks when memory runs out.

    A call that takes more than `hang_seconds` ends this process (0: never).
    """

    def __init__(self, captioner: CaptionerLike, size: int, hang_seconds: float = 0.0) -> None:
        self.captioner = captioner
        self.size = size
        self.hang_seconds = hang_seconds

    def caption(self, pixels: Pixels) -> list[CaptionLike | ImageError]:
        """A caption, or the reason why not, for each of the pixels (B, S, S, 3).

        Raises `UnfinishedError` when the captioner itself does not work.
        """
        found: list[CaptionLike | ImageError] = []
        while len(found) < len(pixels):
            batch = pixels[len(found) : len(found) + self.size]
            try:
                found += self._call(batch)
                continue
            except Exception as error:
                if not (is_out_of_memory(error) and len(batch) > 1):
                    found += self._one_by_one(batch, error)
                    continue
            # Outside of the handler: the exception holds on to what was allocated.
            self.size = max(1, len(batch) // 2)
            free_memory()
        return found

    def _one_by_one(self, batch: Pixels, error: Exception) -> list[CaptionLike | ImageError]:
        if is_broken_gpu(error):
            # Nothing works in this process any more: a new one finds out which image it was.
            os._exit(BROKEN)
        traceback.clear_frames(error.__traceback__)  # which hold on to what was allocated
        free_memory()
        try:
            self._call(grey(batch))
        except Exception:
            raise UnfinishedError(
                f"The captioner {self.captioner.name} fails on every image: {type(error).__name__}: {error}. "
                "Finished shards are kept; give the same command again once this is mended "
                "(a smaller runtime.batch_size needs less memory)."
            ) from error
        return [self._alone(batch[i : i + 1]) for i in range(len(batch))]

    def _alone(self, image: Pixels) -> CaptionLike | ImageError:
        try:
            return self._call(image)[0]
        except Exception as error:
            if is_broken_gpu(error):
                os._exit(BROKEN)
            kind = "memory" if is_out_of_memory(error) else "model"
            return ImageError(kind, f"The captioner failed on this image: {type(error).__name__}: {error}")

    def _call(self, batch: Pixels) -> Sequence[CaptionLike]:
        with _watchdog(self.hang_seconds):
            return self.captioner.caption_pixels(batch, batch_size=self.size)


def grey(pixels: Pixels) -> Pixels:
    """A picture like those of `pixels` (B, S, S, 3) with nothing in it."""
    return np.full_like(pixels[:1], 128)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, a GPU's or the machine's, did not suffice."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text))
        or (isinstance(error, RuntimeError) and ("can't allocate memory" in text or "alloc_failed" in text))
    )


def free_memory() -> None:
    """Give back what is cached and no longer used."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_broken_gpu(error: BaseException) -> bool:
    """Whether nothing works on the GPU any more in this process."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


@contextmanager
def _watchdog(seconds: float) -> Iterator[None]:
    if seconds <= 0:
        yield
        return
    timer = threading.Timer(seconds, os._exit, (HUNG,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
