"""What a model's weights are made into for decoding, made once and kept while the weights stay as they are.

Packing weights and multiplying tables costs as much as captioning some dozen images. In training the
weights change and what was made of them is thrown away. Knows nothing of what is made.
"""

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

T = TypeVar("T")

_KEPT: "WeakKeyDictionary[nn.Module, tuple[object, object]]" = WeakKeyDictionary()


def forget(model: nn.Module) -> None:
    """Throw away what was made of the weights of `model` and its parts, which are to change without a trace."""
    for part in model.modules():
        _KEPT.pop(part, None)


def prepared(model: nn.Module, make: Callable[[torch.dtype], T]) -> T:
    """What `make` makes of the weights of `model`, given the number format that autocast asks for, or theirs."""
    first = next(model.parameters())
    kind = first.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else first.dtype
    parts = [*model.parameters(), *model.buffers()]
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        # What is kept has no way to the weights' gradients.
        return make(dtype)
    if any(part.is_inference() for part in parts):
        # Tensors made in inference mode do not tell when they change.
        return make(dtype)
    state = tuple((id(part), part._version, part.data_ptr()) for part in parts)
    key = (dtype, model.training, state)
    kept = _KEPT.get(model)
    if kept is None or kept[0] != key:
        kept = (key, make(dtype))
        _KEPT[model] = kept
    return kept[1]  # type: ignore[return-value]
