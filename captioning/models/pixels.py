"""Normalises pixels on the model's own device, so that only uint8 is transferred to it."""

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """uint8 pixels (B, S, S, 3) to floats (B, 3, S, S): `(x − mean) / std`, in units of 0 to 255.

    The result keeps its input's memory format (channels last), with which convolutions are fastest.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        # Saved with the settings, so not with the weights.
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return ((pixels.to(self.mean.dtype) - self.mean) / self.std).permute(0, 3, 1, 2)
