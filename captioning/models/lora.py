"""Low-rank adapters in GPT-2 (LoRA, Hu et al. 2021), through `peft`: put in, and merged into plain weights.

While a layer has adapters its own weights are called `….base_layer.weight` and the adapters
`….lora_A.default.weight` (rank, in) and `….lora_B.default.weight` (out, rank); a state also holds
`LORA_SCALE`, so that it can be merged by itself. Knows layers and states, not what they are for.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Gt, Interval, MinLen
from torch import Tensor, nn

from captioning.config import settings
from captioning.errors import SettingsError

#: Name of the buffer that says how much adapters count: alpha / rank.
LORA_SCALE = "lora_scale"

_ADAPTER = re.compile(r"\.lora_(A|B)\.default\.weight$")


@settings
class LoraSettings:
    """Which layers of GPT-2 get adapters, and how large these are."""

    rank: Annotated[int, Gt(0)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    """Adapters count alpha / rank times."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Dropout of what adapters read."""

    targets: Annotated[tuple[str, ...], MinLen(1)] = ("attn.c_attn", "attn.c_proj")
    """Ends of the names of GPT-2's layers: `attn.c_attn`, `attn.c_proj`, `mlp.c_fc`, `mlp.c_proj`."""


def add_adapters(gpt2: nn.Module, lora: LoraSettings) -> None:
    """Put adapters into `gpt2`, in place; at first they change nothing. Raises `SettingsError`."""
    try:
        import peft
    except ImportError as error:
        raise SettingsError(
            'model.lora needs the package peft: pip install "captioning[lora]", or set model.lora to null.'
        ) from error
    alpha: Any = lora.alpha  # declared an int there, and only ever divided
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        fan_in_fan_out=True,  # GPT-2's layers keep their weights the other way round
    )
    for target in lora.targets:
        if not any(name.endswith(f".{target}") for name, _ in gpt2.named_modules()):
            raise SettingsError(
                f"model.lora.targets: GPT-2 has no layer {target!r}; there are attn.c_attn, attn.c_proj, mlp.c_fc and "
                "mlp.c_proj."
            )
    peft.inject_adapter_in_model(config, gpt2)


def scale_of(lora: LoraSettings) -> Tensor:
    """What a state holds as `LORA_SCALE`."""
    return torch.tensor(lora.alpha / lora.rank)


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name is part of an adapter."""
    return _ADAPTER.search(name) is not None


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without adapters that computes what `state` does: W + alpha / rank · (B A)ᵀ. A plain state stays."""
    plain = {}
    for name, value in state.items():
        if name == LORA_SCALE or is_adapter(name):
            continue
        stem = name.removesuffix(".base_layer.weight")
        down, up = (state.get(f"{stem}.lora_{side}.default.weight") for side in "AB")
        if name != stem and down is not None and up is not None:
            value = value + (state[LORA_SCALE].to(value) * (up @ down).T.to(value))
        plain[name.replace(".base_layer.", ".")] = value
    return plain
