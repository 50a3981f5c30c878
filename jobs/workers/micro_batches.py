"""Runs the captioner on a shard's pixels in micro-batches, and handles its failures.

Running out of memory halves the micro-batch size for the rest of the run. An image on which the captioner fails
becomes an error; a captioner that fails on every image ends the run. A grey test image tells the two apart. A call
that hangs ends the process.
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

#: Exit codes of a process that its watchdog, or a broken GPU context, ends.
EXIT_HUNG, EXIT_GPU_BROKEN = 70, 71


class CaptionLike(Protocol):
    """The used attributes of `captioning.captioner.Caption`."""

    @property
    def text(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def alternatives(self) -> tuple[tuple[str, float], ...]: ...


class CaptionerLike(Protocol):
    """The used methods of `captioning.captioner.Captioner`."""

    @property
    def name(self) -> str: ...

    def caption_pixels(self, pixels: Pixels, *, batch_size: int) -> Sequence[CaptionLike]:
        """A caption for each of the pixels (B, S, S, 3) uint8."""
        ...


class MicroBatches:
    """A captioner with the `size` of its micro-batches, which is reduced when memory runs out.

    A call that takes longer than `hang_seconds` ends this process (0: never).
    """

    def __init__(self, captioner: CaptionerLike, size: int, hang_seconds: float = 0.0) -> None:
        self.captioner = captioner
        self.size = size
        self.hang_seconds = hang_seconds

    def caption(self, pixels: Pixels) -> list[CaptionLike | ImageError]:
        """A caption or an error for each of the pixels (B, S, S, 3).

        Raises `UnfinishedError` if the captioner fails on every image.
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
            # Outside the handler, for the exception's traceback keeps tensors alive.
            self.size = max(1, len(batch) // 2)
            free_memory()
        return found

    def _one_by_one(self, batch: Pixels, error: Exception) -> list[CaptionLike | ImageError]:
        if is_broken_gpu(error):
            # The GPU context is unusable in this process: a new process finds the image.
            os._exit(EXIT_GPU_BROKEN)
        traceback.clear_frames(error.__traceback__)  # which keep tensors alive
        free_memory()
        try:
            self._call(grey_image(batch))
        except Exception:
            raise UnfinishedError(
                f"The captioner {self.captioner.name} fails on every image: {type(error).__name__}: {error}. "
                "Finished shards are kept; run the same command again once this is fixed. "
                "If memory ran out, use a smaller runtime.batch_size."
            ) from error
        return [self._caption_alone(batch[i : i + 1]) for i in range(len(batch))]

    def _caption_alone(self, image: Pixels) -> CaptionLike | ImageError:
        try:
            return self._call(image)[0]
        except Exception as error:
            if is_broken_gpu(error):
                os._exit(EXIT_GPU_BROKEN)
            error_class = "memory" if is_out_of_memory(error) else "model"
            return ImageError(error_class, f"The captioner failed on this image: {type(error).__name__}: {error}")

    def _call(self, batch: Pixels) -> Sequence[CaptionLike]:
        with _watchdog(self.hang_seconds):
            return self.captioner.caption_pixels(batch, batch_size=self.size)


def grey_image(pixels: Pixels) -> Pixels:
    """A uniformly grey image (1, S, S, 3) of the size of `pixels` (B, S, S, 3)."""
    return np.full_like(pixels[:1], 128)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is due to a lack of memory, of the GPU or of the machine."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text))
        or (isinstance(error, RuntimeError) and ("can't allocate memory" in text or "alloc_failed" in text))
    )


def free_memory() -> None:
    """Collect garbage, and empty PyTorch's GPU cache."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_broken_gpu(error: BaseException) -> bool:
    """Whether the GPU context of this process is unusable after the error."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


@contextmanager
def _watchdog(seconds: float) -> Iterator[None]:
    if seconds <= 0:
        yield
        return
    timer = threading.Timer(seconds, os._exit, (EXIT_HUNG,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
