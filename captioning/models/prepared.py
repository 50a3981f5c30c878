"""A cache of what decoding derives from a model's weights, valid while the weights stay the same.

Packing weights and computing tables takes as long as captioning some dozen images. When weights change,
as in training, the derived values are discarded.
"""

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

T = TypeVar("T")

_cache: "WeakKeyDictionary[nn.Module, tuple[object, object]]" = WeakKeyDictionary()


def discard_prepared(model: nn.Module) -> None:
    """Discard what was derived from the weights of `model` and its parts: they change in ways not detected here."""
    for part in model.modules():
        _cache.pop(part, None)


def prepared(model: nn.Module, prepare: Callable[[torch.dtype], T]) -> T:
    """`prepare(dtype)`, cached while the weights of `model` stay the same; dtype is autocast's or the weights' own."""
    first = next(model.parameters())
    device_type = first.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else first.dtype
    parts = [*model.parameters(), *model.buffers()]
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        # Cached values would pass no gradients to the weights.
        return prepare(dtype)
    if any(part.is_inference() for part in parts):
        # Tensors made in inference mode have no version counter.
        return prepare(dtype)
    state = tuple((id(part), part._version, part.data_ptr()) for part in parts)
    key = (dtype, model.training, state)
    cached = _cache.get(model)
    if cached is None or cached[0] != key:
        cached = (key, prepare(dtype))
        _cache[model] = cached
    return cached[1]  # type: ignore[return-value]
