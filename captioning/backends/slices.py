"""A network for a fixed number of images, run on any number of them.

The last slice is padded with black images. So an image's result does not depend on how many others
there are, and intermediate results stay in the processor's cache.
"""

import torch
from torch import Tensor

from captioning.backends.network import Network


class Slices:
    """`run` takes exactly `size` images; this takes any number."""

    def __init__(self, run: Network, size: int) -> None:
        self._run = run
        self._size = size

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The results of `run` for pixels (B, S, S, 3) uint8, B > 0."""
        parts = []
        for piece in torch.split(pixels, self._size):
            missing = self._size - len(piece)
            if missing:
                piece = torch.cat([piece, piece.new_zeros(missing, *piece.shape[1:])])
            parts.append(self._run(piece))
        return tuple(torch.cat(each)[: len(pixels)] for each in zip(*parts, strict=True))
