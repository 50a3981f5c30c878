"""A CNN as CLIP's image tower, as open_clip makes them of timm's: a grid, its mean, and a projection.

Gives what CLIP's vision transformer gives, under the same names. Knows nothing of captions.
Shapes: B images, S pixels a side, L grid cells, D channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioning.models.encoders import GridEncoder
from captioning.models.tower_settings import CnnTower


@dataclass(frozen=True)
class Seen:
    """What a tower sees in B images: a state for each cell (B, L, D), and one embedding an image."""

    last_hidden_state: Tensor
    image_embeds: Tensor


class CnnImageTower(nn.Module):
    """Normalised pixels (B, 3, S, S) to `Seen`, which is `rest(stem(pixels))`."""

    def __init__(self, settings: CnnTower, *, pretrained: bool) -> None:
        super().__init__()
        self.encoder = GridEncoder(settings.encoder, pretrained=pretrained)
        self.visual_projection = nn.Linear(self.encoder.channels, settings.projection_dim, bias=False)

    def forward(self, pixel_values: Tensor) -> Seen:
        return self._seen(self.encoder(pixel_values))

    @property
    def has_stem(self) -> bool:
        """Whether the encoder begins with a part that is not trained."""
        return self.encoder.has_stem

    def stem(self, pixels: Tensor) -> Tensor:
        """The frozen part of the encoder: a map (B, C, h, w), without gradients."""
        return self.encoder.stem(pixels)

    def rest(self, stem: Tensor) -> Seen:
        """All that comes after `stem`, which may have been kept in another float type."""
        # Convolutions like their channels last, and a kept stem has lost the memory order.
        weight = self.visual_projection.weight
        like = torch.channels_last if stem.ndim == 4 else torch.contiguous_format
        return self._seen(self.encoder.rest(stem.to(weight.dtype, memory_format=like)))

    def embed(self, states: Tensor) -> Tensor:
        """The embedding (B, E) of a grid (B, L, D): its mean, projected."""
        embedding: Tensor = self.visual_projection(states.mean(1))
        return embedding

    def _seen(self, grid: Tensor) -> Seen:
        return Seen(grid, self.embed(grid))
