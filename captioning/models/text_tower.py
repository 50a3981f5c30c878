"""A small text encoder for contrastive training: captions to embeddings.

The text half of CLIP (Radford et al. 2021), but with bidirectional attention, since it generates
nothing. Shapes: N captions, T tokens, W width, D length of an embedding.
"""

import torch
from torch import Tensor, nn

from captioning.models.base import PAD_TARGET


class TextTower(nn.Module):
    """Token and position embeddings, pre-norm transformer blocks, and a projection of the end token's state."""

    def __init__(
        self,
        *,
        vocab_size: int,
        max_tokens: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        embedding_size: int,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_tokens, width)
        # CLIP's initialisation (its released code).
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.01)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embedding_size, bias=False)

    def forward(self, captions: Tensor) -> Tensor:
        """Embeddings (N, D) of `captions` (N, T): token ids with the end token, padded with `PAD_TARGET`."""
        padding = captions == PAD_TARGET
        places = torch.arange(captions.shape[1], device=captions.device)
        states = self.tokens(captions.masked_fill(padding, 0)) + self.positions(places)
        states = self.blocks(states, src_key_padding_mask=padding)
        last = (~padding).sum(1) - 1
        embeddings: Tensor = self.projection(
            self.norm(states[torch.arange(len(captions), device=captions.device), last])
        )
        return embeddings
