"""Linear layers for inference, with weights packed once into the layout that this CPU multiplies fastest.

At decoding's shapes (tens to hundreds of rows) PyTorch's own layer is far from a CPU's peak; oneDNN with
prepacked weights is close to it. On other devices, and where gradients are needed, PyTorch's layer runs.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

#: Activations that can be fused with the product.
Activation = Literal["none", "relu", "tanh", "gelu", "gelu_tanh"]

#: The number of rows that weights are packed for; other numbers were measured to be as fast.
_PACKED_ROWS = 128


class Linear:
    """x Wᵀ + b, then an activation, for x (R, I) of the weights' type and W (O, I)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> None:
        self._bias, self._activation = bias, activation
        self._name, _, algorithm = activation.partition("_")
        self._algorithm = algorithm or _DEFAULT_ALGORITHM[self._name]
        self._packed = _pack(weight)
        self._weight = weight if self._packed is None else None
        #: The type that x must have.
        self.dtype = weight.dtype
        self.out_features = len(weight)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(R, O), plus `residual` (R, O) of the same type, which excludes an activation."""
        assert residual is None or self._activation == "none"
        result: Tensor
        if self._weight is not None:
            result = _activate(functional.linear(x, self._weight, self._bias), self._activation)
            return result if residual is None else result + residual
        multiply = torch.ops.mkldnn._linear_pointwise
        if residual is None:
            result = multiply.default(x, self._packed, self._bias, self._name, [], self._algorithm)
        else:
            result = multiply.binary(x, residual, self._packed, self._bias, "add")
        return result


#: oneDNN's algorithm for each activation, where the activation's name does not give one.
_DEFAULT_ALGORITHM = {"none": "", "relu": "", "tanh": "", "gelu": "none"}


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's own layout, or None where PyTorch's linear layer is to be used."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    if weight.requires_grad and torch.is_grad_enabled():
        return None
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return None
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _PACKED_ROWS)
    return packed


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "gelu_tanh":
        return functional.gelu(x, approximate="tanh")
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": functional.relu,
        "tanh": torch.tanh,
        "gelu": functional.gelu,
    }
    return x if activation == "none" else functions[activation](x)
