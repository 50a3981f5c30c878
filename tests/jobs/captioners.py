"""Fake captioners that fail like real ones. Module-level classes, so that they can be pickled by name."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Said:
    text: str
    score: float = -1.5
    num_tokens: int = 3
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass
class Moody:
    """Says how bright a picture is, and suffers from some: by the brightness of their first pixel's red.

    `deadly` ends the process, `killing` with SIGKILL, `hanging` never ends, `greedy` has no memory
    for it, `hated` raises. More than `most` pictures at once are too many for its memory.
    """

    deadly: Sequence[int] = ()
    killing: Sequence[int] = ()
    hanging: Sequence[int] = ()
    greedy: Sequence[int] = ()
    hated: Sequence[int] = ()
    most: int = 1000
    name: str = "moody-00000000"
    batches: list[int] = field(default_factory=list)

    def __call__(self) -> "Moody":
        return self

    def caption_pixels(self, pixels: np.ndarray, *, batch_size: int) -> list[Said]:
        self.batches.append(len(pixels))
        marks = {int(mark) for mark in pixels[:, 0, 0, 0]}
        if marks & set(self.deadly):
            os._exit(7)
        if marks & set(self.killing):
            os.kill(os.getpid(), signal.SIGKILL)
        if marks & set(self.hanging):
            time.sleep(10_000)
        if marks & set(self.greedy) or len(pixels) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if marks & set(self.hated):
            raise ValueError("not this one")
        return [Said(f"brightness {image.mean():.3f}") for image in pixels]


def pictures(count: int, side: int = 4) -> np.ndarray:
    """Pixels (count, side, side, 3) uint8, picture n marked n and otherwise n + 1."""
    pixels = np.empty((count, side, side, 3), np.uint8)
    for number in range(count):
        pixels[number] = number + 1
        pixels[number, 0, 0, 0] = number
    return pixels
