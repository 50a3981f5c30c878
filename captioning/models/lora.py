"""Low-rank adapters in GPT-2 (LoRA, Hu et al. 2021): added with `peft`, and merged into plain weights.

The weights of a layer with adapters are named `….base_layer.weight`, and the adapters
`….lora_A.default.weight` (rank, in) and `….lora_B.default.weight` (out, rank). A state dict also holds
`LORA_SCALE`, so that it can be merged without the settings.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from captioning.errors import SettingsError
from captioning.models.lora_settings import LoraSettings

#: Name of the buffer that holds the adapters' scale, alpha / rank.
LORA_SCALE = "lora_scale"

_ADAPTER = re.compile(r"\.lora_(A|B)\.default\.weight$")


def add_adapters(gpt2: nn.Module, lora: LoraSettings) -> None:
    """Add adapters to `gpt2` in place; initially they change nothing. Raises `SettingsError`."""
    try:
        import peft
    except ImportError as error:
        raise SettingsError(
            'model.lora needs the package peft: pip install "captioning[lora]", or set model.lora to null.'
        ) from error
    alpha: Any = lora.alpha  # peft declares an int, but only divides by the rank
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        fan_in_fan_out=True,  # GPT-2's Conv1D layers store their weights transposed
    )
    for target in lora.targets:
        if not any(name.endswith(f".{target}") for name, _ in gpt2.named_modules()):
            raise SettingsError(
                f"model.lora.targets: GPT-2 has no layer {target!r}; it has attn.c_attn, attn.c_proj, mlp.c_fc and "
                "mlp.c_proj."
            )
    peft.inject_adapter_in_model(config, gpt2)


def scale_of(lora: LoraSettings) -> Tensor:
    """The value of the buffer `LORA_SCALE`."""
    return torch.tensor(lora.alpha / lora.rank)


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name is part of an adapter."""
    return _ADAPTER.search(name) is not None


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with its adapters merged: W + alpha / rank · (B A)ᵀ. One without adapters is returned as it is."""
    plain = {}
    for name, value in state.items():
        if name == LORA_SCALE or is_adapter(name):
            continue
        layer = name.removesuffix(".base_layer.weight")
        down, up = (state.get(f"{layer}.lora_{side}.default.weight") for side in "AB")
        if name != layer and down is not None and up is not None:
            value = value + (state[LORA_SCALE].to(value) * (up @ down).T.to(value))
        plain[name.replace(".base_layer.", ".")] = value
    return plain
