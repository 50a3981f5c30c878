"""A CNN as CLIP's image tower, like open_clip's timm towers: a grid, its mean, and a projection.

Its outputs have the names of those of CLIP's vision transformer. Shapes: B images, S pixels a side,
L grid cells, D channels, E embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioning.models.encoders import GridEncoder
from captioning.models.tower_settings import CnnTower


@dataclass(frozen=True)
class TowerOutput:
    """A tower's output for B images: a state for each cell (B, L, D), and one embedding an image (B, E)."""

    last_hidden_state: Tensor
    image_embeds: Tensor


class CnnImageTower(nn.Module):
    """Normalised pixels (B, 3, S, S) to `TowerOutput`, which is `rest(stem(pixels))`."""

    def __init__(self, settings: CnnTower, *, pretrained: bool) -> None:
        super().__init__()
        self.encoder = GridEncoder(settings.encoder, pretrained=pretrained)
        self.visual_projection = nn.Linear(self.encoder.channels, settings.projection_dim, bias=False)

    def forward(self, pixel_values: Tensor) -> TowerOutput:
        return self._output(self.encoder(pixel_values))

    @property
    def has_stem(self) -> bool:
        """Whether the encoder begins with a frozen part."""
        return self.encoder.has_stem

    def stem(self, pixels: Tensor) -> Tensor:
        """The feature map (B, C, h, w) of the encoder's frozen part, without gradients."""
        return self.encoder.stem(pixels)

    def rest(self, stem: Tensor) -> TowerOutput:
        """The tower after `stem`, whose output may have been cached in another float type."""
        # Convolutions are fastest with channels last, and a cached stem has lost that memory format.
        weight = self.visual_projection.weight
        memory_format = torch.channels_last if stem.ndim == 4 else torch.contiguous_format
        return self._output(self.encoder.rest(stem.to(weight.dtype, memory_format=memory_format)))

    def embed(self, states: Tensor) -> Tensor:
        """The embedding (B, E) of a grid (B, L, D): its mean, projected."""
        embedding: Tensor = self.visual_projection(states.mean(1))
        return embedding

    def _output(self, grid: Tensor) -> TowerOutput:
        return TowerOutput(grid, self.embed(grid))
