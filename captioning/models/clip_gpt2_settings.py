"""What a CLIP-GPT2 is told: its two towers, what joins them, and what of it learns. Imports no PyTorch."""

from typing import Annotated, Literal

from annotated_types import Interval

from captioning.config import settings
from captioning.models.lora_settings import LoraSettings
from captioning.models.mapper_settings import MapperSettings
from captioning.models.tower_settings import ClipTower, CnnTower, Gpt2Tower

#: What learns, by the setting `train`.
LEARNING = {
    "mapper": {"mapper"},
    "decoder": {"mapper", "gpt2"},
    "all": {"clip", "mapper", "gpt2"},
    "clip": {"clip"},
    "gpt2": {"gpt2"},
}


@settings
class ClipGpt2Settings:
    """The parts of a CLIP-GPT2, and which of them learn."""

    kind: Literal["clip_gpt2"] = "clip_gpt2"
    """CLIP that sees, GPT-2 that writes, and a mapper between them."""

    clip: str | ClipTower | CnnTower = "openai/clip-vit-base-patch32"
    """A hub id, `ORG/NAME@REVISION`, a folder in the hub's layout, sizes for random weights, or (`encoder`) a CNN."""

    gpt2: str | Gpt2Tower = "openai-community/gpt2"
    """A reference or sizes, as `clip`. The tokenizer must be the one that these weights were trained with."""

    mapper: MapperSettings = MapperSettings()
    train: Literal["mapper", "decoder", "all", "clip", "gpt2"] = "decoder"
    """What learns: the mapper alone, the mapper and GPT-2 (`decoder`), CLIP too (`all`); or one tower by itself, before
    there is anything to map: `clip` (objective contrastive), `gpt2` (objective language_model)."""

    lora: LoraSettings | None = None
    """Where GPT-2 learns, only adapters in it do (extra `lora`). Checkpoints have them merged into its weights."""

    gradient_checkpointing: bool = False
    """Training keeps no states within GPT-2's blocks and computes them again: less memory, a third more time."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Dropout in the mapper and throughout GPT-2."""

    def __post_init__(self) -> None:
        if self.lora is not None and "gpt2" not in LEARNING[self.train]:
            raise ValueError(f"lora is for training GPT-2, and train is {self.train!r}: set it to decoder, all or gpt2")
