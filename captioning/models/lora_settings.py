"""Settings of LoRA adapters in GPT-2. Imports no PyTorch."""

from typing import Annotated

from annotated_types import Gt, Interval, MinLen

from captioning.config import settings


@settings
class LoraSettings:
    """Which layers of GPT-2 get adapters, and how large these are."""

    rank: Annotated[int, Gt(0)] = 8
    """Rank of the adapters."""

    alpha: Annotated[float, Gt(0)] = 16.0
    """Adapters are scaled by alpha / rank."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Dropout of the adapters' inputs."""

    targets: Annotated[tuple[str, ...], MinLen(1)] = ("attn.c_attn", "attn.c_proj")
    """Ends of the names of GPT-2's layers: `attn.c_attn`, `attn.c_proj`, `mlp.c_fc`, `mlp.c_proj`."""
