"""Linear layers for inference: weights laid out once the way this processor multiplies fastest.

At decoding's shapes (tens to hundreds of rows) PyTorch's own path is far from a CPU's peak; oneDNN on
weights that were packed beforehand is close to it. Elsewhere, and where gradients are wanted, it is
PyTorch's linear layer. Knows nothing of what is multiplied.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

#: What may follow the product in the same pass.
Activation = Literal["none", "relu", "tanh", "gelu", "gelu_tanh"]

#: Rows that the layout is made for; other numbers of rows were found to be as fast.
_ROWS = 128


class Linear:
    """x Wᵀ + b, then an activation, for x (R, I) of the weights' type and W (O, I)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> None:
        self._bias, self._activation = bias, activation
        self._name, _, how = activation.partition("_")
        self._how = how or _PLAIN[self._name]
        self._packed = _pack(weight)
        self._weight = weight if self._packed is None else None
        #: The type that x must have.
        self.dtype = weight.dtype
        #: Numbers of a result.
        self.size = len(weight)

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """(R, O), and `plus` (R, O) of the same type, which no activation may come before."""
        assert plus is None or self._activation == "none"
        result: Tensor
        if self._weight is not None:
            result = _activate(functional.linear(x, self._weight, self._bias), self._activation)
            return result if plus is None else result + plus
        multiply = torch.ops.mkldnn._linear_pointwise
        if plus is None:
            result = multiply.default(x, self._packed, self._bias, self._name, [], self._how)
        else:
            result = multiply.binary(x, plus, self._packed, self._bias, "add")
        return result


#: How oneDNN's activations are told apart where there is more than one.
_PLAIN = {"none": "", "relu": "", "tanh": "", "gelu": "none"}


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
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
    return packed


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "gelu_tanh":
        return functional.gelu(x, approximate="tanh")
    plain: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": functional.relu,
        "tanh": torch.tanh,
        "gelu": functional.gelu,
    }
    return x if activation == "none" else plain[activation](x)
