"""Mappers from image features to the prefix embeddings that GPT-2 reads before the caption.

The two of ClipCap (Mokady et al. 2021): an MLP, and a transformer in which learned constants attend
to the image and become the prefix. Shapes: B images, D width of a feature, P length of the prefix,
E width of the decoder, L states of an image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.models.mapper_settings import MapperSettings


def make_mapper(settings: MapperSettings, *, feature_size: int, width: int, dropout: float) -> nn.Module:
    """A mapper from features (B, D), or patch states (B, L, D), to prefixes (B, P, E); E is `width`."""
    if settings.kind == "mlp":
        return MlpMapper(settings, feature_size=feature_size, width=width, dropout=dropout)
    return TransformerMapper(settings, feature_size=feature_size, width=width, dropout=dropout)


class MlpMapper(nn.Module):
    """An MLP with tanh from features (B, D) to a prefix (B, P, E)."""

    def __init__(self, settings: MapperSettings, *, feature_size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.prefix_length = settings.prefix_length
        hidden = settings.hidden or max(1, settings.prefix_length * width // 2)
        layers: list[nn.Module] = []
        size = feature_size
        for _ in range(settings.layers or 1):
            layers += [nn.Linear(size, hidden), nn.Tanh(), nn.Dropout(dropout)]
            size = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(size, settings.prefix_length * width))

    def forward(self, features: Tensor) -> Tensor:
        prefix: Tensor = self.layers(features)
        return prefix.reshape(len(prefix), self.prefix_length, -1)


class TransformerMapper(nn.Module):
    """Features (B, D) or (B, L, D) to a prefix (B, P, E): learned constants that attend to the image's states."""

    def __init__(self, settings: MapperSettings, *, feature_size: int, width: int, dropout: float) -> None:
        super().__init__()
        if width % settings.heads:
            raise ValueError(f"mapper.heads {settings.heads} must divide the width of the decoder, {width}")
        self.prefix_length = settings.prefix_length
        self.unfolds = settings.source == "embedding"
        # CLIP's patch states are not normalised; the norms of some are tens of times those of others.
        self.norm = nn.Identity() if self.unfolds else nn.LayerNorm(feature_size)
        self.image_length = settings.image_length
        self.project = nn.Linear(feature_size, width * (settings.image_length if self.unfolds else 1))
        self.constants = nn.Parameter(torch.randn(settings.prefix_length, width))
        hidden = settings.hidden or 2 * width
        self.blocks = nn.ModuleList(_Block(width, settings.heads, hidden, dropout) for _ in range(settings.layers or 8))

    def forward(self, features: Tensor) -> Tensor:
        states: Tensor = self.project(self.norm(features))
        if self.unfolds:
            states = states.reshape(len(states), self.image_length, -1)
        constants = self.constants.to(states.dtype).expand(len(states), -1, -1)
        states = torch.cat([states, constants], dim=1)
        for block in self.blocks:
            states = block(states)
        return states[:, -self.prefix_length :]


class _Block(nn.Module):
    """A transformer block: self-attention, then an MLP, each after a layer norm and around a residual connection."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        projected = self.queries_keys_values(self.norm_attention(states))
        parts = projected.reshape(*projected.shape[:2], 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        states = states + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        output: Tensor = self.feed(self.norm_feed(states))
        return states + output
