"""Settings of a CLIP-GPT2: its two towers, the mapper, and which parts are trained. Imports no PyTorch."""

from typing import Annotated, Literal

from annotated_types import Interval

from captioning.config import settings
from captioning.models.lora_settings import LoraSettings
from captioning.models.mapper_settings import MapperSettings
from captioning.models.tower_settings import ClipTower, CnnTower, Gpt2Tower

#: The trained parts, by the setting `train`.
TRAINED = {
    "mapper": {"mapper"},
    "decoder": {"mapper", "gpt2"},
    "all": {"clip", "mapper", "gpt2"},
    "clip": {"clip"},
    "gpt2": {"gpt2"},
}


@settings
class ClipGpt2Settings:
    """The parts of a CLIP-GPT2, and which of them are trained."""

    kind: Literal["clip_gpt2"] = "clip_gpt2"
    """CLIP encodes the image, GPT-2 writes the caption, and a mapper connects them."""

    clip: str | ClipTower | CnnTower = "openai/clip-vit-base-patch32"
    """A hub id, `ORG/NAME@REVISION`, a folder in the hub's layout, sizes for random weights, or (`encoder`) a CNN."""

    gpt2: str | Gpt2Tower = "openai-community/gpt2"
    """A reference or sizes, as `clip`. The tokenizer must be the one that these weights were trained with."""

    mapper: MapperSettings = MapperSettings()
    train: Literal["mapper", "decoder", "all", "clip", "gpt2"] = "decoder"
    """What is trained: the mapper alone, the mapper and GPT-2 (`decoder`), CLIP too (`all`); or one tower by itself,
    before the two are joined: `clip` (objective contrastive), `gpt2` (objective language_model)."""

    lora: LoraSettings | None = None
    """Train GPT-2 only through adapters (extra `lora`). Checkpoints have them merged into its weights."""

    gradient_checkpointing: bool = False
    """Recompute the activations within GPT-2's blocks in the backward pass: less memory, a third more time."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Dropout in the mapper and throughout GPT-2."""

    def __post_init__(self) -> None:
        if self.lora is not None and "gpt2" not in TRAINED[self.train]:
            raise ValueError(f"lora is for training GPT-2, but train is {self.train!r}: set it to decoder, all or gpt2")
