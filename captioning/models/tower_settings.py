"""The sizes of CLIP-GPT2's towers: CLIP's vision transformer or a CNN in its place, and GPT-2. Imports no PyTorch."""

from typing import Annotated

from annotated_types import Gt

from captioning.config import settings
from captioning.models.encoder_settings import EncoderSettings

_Size = Annotated[int, Gt(0)]


@settings
class ClipTower:
    """The sizes of CLIP's vision transformer (defaults: ViT-B/32)."""

    hidden_size: _Size = 768
    """Width of the states."""

    intermediate_size: _Size | None = None
    """Width of the feed-forward layers; null: four times `hidden_size`."""

    projection_dim: _Size = 512
    """Length of an image's embedding."""

    layers: _Size = 12
    """Transformer blocks."""

    heads: _Size = 12
    """Attention heads."""

    image_size: _Size = 224
    """Pixels a side; `preprocess.size` must be the same."""

    patch_size: _Size = 32
    """Pixels a side of a patch."""

    hidden_act: str = "quick_gelu"
    """Activation of the feed-forward layers, as transformers names it."""

    layer_norm_eps: float = 1e-5
    """Added to variances in layer normalisation."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of heads {self.heads}")
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be at least patch_size {self.patch_size}")

    @property
    def patches(self) -> int:
        """States of an image: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@settings
class CnnTower:
    """A CNN, and the size of the embedding made from its grid."""

    encoder: EncoderSettings = EncoderSettings()
    """The CNN; its `tune_from` says which part is trained where the tower is."""

    projection_dim: _Size = 256
    """Length of an image's embedding."""


@settings
class Gpt2Tower:
    """The sizes of GPT-2, under the names of its own configuration (defaults: GPT-2 small)."""

    n_embd: _Size = 768
    """Width of the states."""

    n_layer: _Size = 12
    """Transformer blocks."""

    n_head: _Size = 12
    """Attention heads."""

    n_positions: _Size = 1024
    """Positions in all: prefix, prompt and caption together."""

    vocab_size: _Size | None = None
    """Null: as many as the tokenizer has."""

    n_inner: _Size | None = None
    """Width of the feed-forward layers; null: four times `n_embd`."""

    activation_function: str = "gelu_new"
    """Activation of the feed-forward layers, as transformers names it."""

    layer_norm_epsilon: float = 1e-5
    """Added to variances in layer normalisation."""

    scale_attn_weights: bool = True
    """Divide attention logits by the square root of the width of a head."""

    scale_attn_by_inverse_layer_idx: bool = False
    """Also divide them by the number of the block."""

    tie_word_embeddings: bool = True
    """Input embeddings and output layer share their weights."""

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} must be a multiple of n_head {self.n_head}")
