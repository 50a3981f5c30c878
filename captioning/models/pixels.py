"""Normalises pixels on the model's own device, so that uint8 is all that travels."""

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """uint8 pixels (B, S, S, 3) to floats (B, 3, S, S): `(x − mean) / std`, in units of 0 to 255.

    The result keeps the memory order of its input (channels last), which convolutions like.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        # Part of the settings, so not of the weights.
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return ((pixels.to(self.mean.dtype) - self.mean) / self.std).permute(0, 3, 1, 2)
