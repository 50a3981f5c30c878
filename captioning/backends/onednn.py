"""Convolutions and linear layers as oneDNN runs them fastest: weights packed, batch norms and activations within.

oneDNN comes with PyTorch, whose own kernels use it one operation at a time, unpacked. A batch norm
becomes part of the weights of the convolution before it, and an activation or the sum of a residual
block part of the same pass over memory. What is neither stays PyTorch's. Knows operations, no models.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from captioning.backends.layers import (
    ACTIVATIONS,
    Activation,
    Convolution,
    convolution_at,
    replace,
    value,
    with_activation,
    with_sum,
)
from captioning.backends.network import Network, aten, constant, dtype_of, finish, only_user, trace
from captioning.decoding.linear import Linear

#: What `decoding.linear` calls those that it knows.
_OF_LINEAR = {"relu": "relu", "tanh": "tanh", "gelu": "gelu"}
_VIEWS = (aten.view.default, aten._unsafe_view.default)


def is_here() -> bool:
    """Whether this PyTorch has oneDNN's fused operations."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def prepare(network: Network, pixels: Tensor, dtype: torch.dtype) -> Network:
    """`network` for exactly as many images as `pixels` (B, S, S, 3) uint8 has, on a CPU."""
    module = trace(network, pixels, dtype)
    fuse_convolutions(module)
    fuse_linears(module)
    return finish(module)


class _Convolution(nn.Module):
    """A packed convolution of x (B, C, H, W), what is added to it, and its activation."""

    def __init__(self, found: Convolution, size: list[int], activation: Activation, into: bool) -> None:
        super().__init__()
        weight = found.weight.to(found.dtype).contiguous(memory_format=torch.channels_last)
        stride, padding, dilation, groups = found.geometry
        self._geometry = padding, stride, dilation, groups
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, size)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", found.bias.to(found.dtype), persistent=False)
        self._activation = activation
        self._into = into

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        mkldnn = torch.ops.mkldnn
        result: Tensor
        if other is None:
            result = mkldnn._convolution_pointwise.default(
                x, self.weight, self.bias, *self._geometry, *self._activation
            )
            return result
        name, numbers, how = self._activation
        after = ("add", 1.0, None if name == "none" else name, numbers, how)
        if self._into:
            result = mkldnn._convolution_pointwise_.binary(other, x, self.weight, self.bias, *self._geometry, *after)
        else:
            result = mkldnn._convolution_pointwise.binary(x, other, self.weight, self.bias, *self._geometry, *after)
        return result


class _Linear(nn.Module):
    """A packed linear layer and its activation."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self._linear(x)


def fuse_convolutions(module: fx.GraphModule) -> None:
    """Pack the convolutions of `module` that are not packed yet, with what belongs to them."""
    for count, node in enumerate(list(module.graph.nodes)):
        found = convolution_at(module, node)
        if found is None:
            continue
        other, last = with_sum(node, found.last)
        # What is convolved cannot be written over on the way.
        into = other is not None and other is not found.x and _is_free(other, last)
        # oneDNN's sums know but one activation.
        activation, last = with_activation(last, ("relu",) if other is not None else ACTIVATIONS)
        layer = _Convolution(found, list(value(found.x).shape), activation, into)
        replace(module, f"convolution{count}", layer, last, (found.x,) if other is None else (found.x, other))


def fuse_linears(module: fx.GraphModule) -> None:
    """Pack the linear layers of `module`, with their activations."""
    for count, node in enumerate(list(module.graph.nodes)):
        if node.target is aten.addmm.default and not node.kwargs:
            bias_node, x, weight_node = node.args
        elif node.target is aten.mm.default:
            (x, weight_node), bias_node = node.args, None
        else:
            continue
        weight, bias = constant(module, weight_node), constant(module, bias_node)
        if weight is None or (bias is None and bias_node is not None) or (bias is not None and bias.ndim != 1):
            continue
        dtype = dtype_of(module, weight_node)
        name, last = _linear_activation(node)
        layer = _Linear(Linear(weight.T.to(dtype).contiguous(), None if bias is None else bias.to(dtype), name))
        replace(module, f"linear{count}", layer, last, (x,))


def _is_free(other: fx.Node, add: fx.Node) -> bool:
    """Whether nothing reads `other` after `add`, nor a view of it: the sum may be written over it."""
    fresh = other.op == "call_module"
    reads = [user for user in other.users if user is not add]
    copies = (aten.convolution.default, aten.constant_pad_nd.default)
    return fresh and all((user.op == "call_module" or user.target in copies) and user < add for user in reads)


def _linear_activation(node: fx.Node) -> tuple[Any, fx.Node]:
    """The activation of a linear layer, whose result may be given another shape first."""
    view = only_user(node)
    view = view if view is not None and view.target in _VIEWS else None
    (name, _, how), last = with_activation(view or node, tuple(_OF_LINEAR))
    if name == "none":
        return "none", node
    if view is not None:
        # First the activation, then the shape.
        last.replace_all_uses_with(view)
        return ("gelu_tanh" if how == "tanh" else name), node
    return ("gelu_tanh" if how == "tanh" else name), last
