"""Settings of the mapper from image features to GPT-2's prefix. Imports no PyTorch."""

from typing import Annotated, Literal

from annotated_types import Gt

from captioning.config import settings

_Size = Annotated[int, Gt(0)]


@settings
class MapperSettings:
    """Which mapper, and its sizes."""

    kind: Literal["mlp", "transformer"] = "mlp"
    """ClipCap's two: an MLP, or a transformer."""

    prefix_length: _Size = 10
    """Embeddings that GPT-2 reads before the caption."""

    layers: _Size | None = None
    """Hidden layers; null: ClipCap's (1 for the MLP, 8 for the transformer)."""

    heads: _Size = 8
    """Attention heads of the transformer."""

    hidden: _Size | None = None
    """Width of the hidden layers; null: ClipCap's (MLP: half the prefix; transformer: twice the decoder's width)."""

    source: Literal["embedding", "patches"] = "embedding"
    """The mapper's input: the image's one embedding, or (transformer only) the state of every patch."""

    image_length: _Size = 10
    """States that the transformer unfolds the one embedding into."""

    weights: str | None = None
    """A checkpoint (folder, URI or name) whose mapper initialises that of a new model; null: random weights."""

    def __post_init__(self) -> None:
        if self.source == "patches" and self.kind == "mlp":
            raise ValueError("source 'patches' needs kind 'transformer': the mlp reads one embedding per image")
