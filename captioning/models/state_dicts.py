"""State dicts of a CLIP-GPT2 under different training settings: tied weights stored once, adapters merged or added."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from captioning.models.lora import LORA_SCALE, is_adapter, merged

_EMBEDDINGS = "gpt2.transformer.wte.weight"
_HEAD = "gpt2.lm_head.weight"


def converted(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `state` in the layout of `own`, the state of the model that is to load them.

    The two may differ in their adapters, and in whether embeddings and head are tied. Raises
    `RuntimeError` when two different matrices would have to be tied.
    """
    if _adapters(state) == _adapters(own):
        plain = dict(state)
    else:
        plain = merged(state)
        for name, value in own.items():
            if ".base_layer." in name:
                plain[name] = plain.pop(name.replace(".base_layer.", "."))
            elif name == LORA_SCALE or is_adapter(name):
                plain[name] = value
    if _HEAD in own and _HEAD not in plain and _EMBEDDINGS in plain:
        plain[_HEAD] = plain[_EMBEDDINGS]
    elif _HEAD in plain and _HEAD not in own and not torch.equal(plain.pop(_HEAD), plain[_EMBEDDINGS]):
        raise RuntimeError("the model's embeddings and head are one matrix, but in these weights they differ")
    return plain


def keep_tied(model: Any) -> None:
    """Keep the tied embeddings and head of `model.gpt2` one matrix: saved once, and tied again when loaded."""
    model.register_state_dict_post_hook(_drop_tied)
    model.register_load_state_dict_pre_hook(_restore_tied)
    model.register_load_state_dict_post_hook(_tie)


def _adapters(state: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """Shapes of the adapters, and their scale."""
    found: dict[str, tuple[Any, ...]] = {name: tuple(value.shape) for name, value in state.items() if is_adapter(name)}
    if LORA_SCALE in state:
        found[LORA_SCALE] = (float(state[LORA_SCALE]),)
    return found


def _drop_tied(_module: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    state.pop(f"{prefix}{_HEAD}", None)


def _restore_tied(_module: Any, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    if f"{prefix}{_EMBEDDINGS}" in state:
        state[f"{prefix}{_HEAD}"] = state[f"{prefix}{_EMBEDDINGS}"]


def _tie(module: Any, _keys: Any) -> None:
    module.gpt2.lm_head.weight = module.gpt2.transformer.wte.weight
