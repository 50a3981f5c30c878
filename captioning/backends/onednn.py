"""Convolutions and linear layers in oneDNN, with packed weights, folded batch norms and fused activations.

oneDNN comes with PyTorch, whose own kernels call it one operation at a time with unpacked weights. Here
a batch norm is folded in_place the weights of the convolution before it, and an activation or the sum of a
residual block is fused with it. All other operations stay PyTorch's.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from captioning.backends.layers import (
    ACTIVATIONS,
    Activation,
    Convolution,
    match_activation,
    match_convolution,
    match_sum,
    meta_of,
    replace,
)
from captioning.backends.network import Network, aten, constant, dtype_of, finish, single_user, trace
from captioning.decoding.linear import Linear

#: Activations that `decoding.linear` can fuse.
_LINEAR_ACTIVATIONS = ("relu", "tanh", "gelu")
_VIEWS = (aten.view.default, aten._unsafe_view.default)


def is_available() -> bool:
    """Whether this build of PyTorch has oneDNN's fused operations."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def prepare(network: Network, pixels: Tensor, dtype: torch.dtype) -> Network:
    """`network` for exactly as many images as `pixels` (B, S, S, 3) uint8 has, on a CPU."""
    module = trace(network, pixels, dtype)
    fuse_convolutions(module)
    fuse_linears(module)
    return finish(module)


class _Convolution(nn.Module):
    """A packed convolution of x (B, C, H, W), fused with a sum and an activation."""

    def __init__(self, found: Convolution, size: list[int], activation: Activation, in_place: bool) -> None:
        super().__init__()
        weight = found.weight.to(found.dtype).contiguous(memory_format=torch.channels_last)
        stride, padding, dilation, groups = found.geometry
        self._geometry = padding, stride, dilation, groups
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, size)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", found.bias.to(found.dtype), persistent=False)
        self._activation = activation
        self._into = in_place

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        mkldnn = torch.ops.mkldnn
        result: Tensor
        if other is None:
            result = mkldnn._convolution_pointwise.default(
                x, self.weight, self.bias, *self._geometry, *self._activation
            )
            return result
        name, parameters, algorithm = self._activation
        after = ("add", 1.0, None if name == "none" else name, parameters, algorithm)
        if self._into:
            result = mkldnn._convolution_pointwise_.binary(other, x, self.weight, self.bias, *self._geometry, *after)
        else:
            result = mkldnn._convolution_pointwise.binary(x, other, self.weight, self.bias, *self._geometry, *after)
        return result


class _Linear(nn.Module):
    """A packed linear layer fused with its activation."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self._linear(x)


def fuse_convolutions(module: fx.GraphModule) -> None:
    """Pack the convolutions of `module` that are not packed yet, fused with what follows them."""
    for count, node in enumerate(list(module.graph.nodes)):
        found = match_convolution(module, node)
        if found is None:
            continue
        other, last = match_sum(node, found.last)
        # The convolution's input cannot be overwritten while it is read.
        in_place = other is not None and other is not found.x and _may_overwrite(other, last)
        # With a sum oneDNN supports only one activation.
        activation, last = match_activation(last, ("relu",) if other is not None else ACTIVATIONS)
        layer = _Convolution(found, list(meta_of(found.x).shape), activation, in_place)
        replace(module, f"convolution{count}", layer, last, (found.x,) if other is None else (found.x, other))


def fuse_linears(module: fx.GraphModule) -> None:
    """Pack the linear layers of `module`, fused with their activations."""
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


def _may_overwrite(other: fx.Node, add: fx.Node) -> bool:
    """Whether the sum may overwrite `other`: nothing reads it, or a view of it, after `add`."""
    fresh = other.op == "call_module"
    reads = [user for user in other.users if user is not add]
    copies = (aten.convolution.default, aten.constant_pad_nd.default)
    return fresh and all((user.op == "call_module" or user.target in copies) and user < add for user in reads)


def _linear_activation(node: fx.Node) -> tuple[Any, fx.Node]:
    """The activation of a linear layer, whose result may be reshaped first."""
    view = single_user(node)
    view = view if view is not None and view.target in _VIEWS else None
    (name, _, algorithm), last = match_activation(view or node, _LINEAR_ACTIVATIONS)
    if name == "none":
        return "none", node
    if view is not None:
        # The activation comes first, then the reshape.
        last.replace_all_uses_with(view)
        return ("gelu_tanh" if algorithm == "tanh" else name), node
    return ("gelu_tanh" if algorithm == "tanh" else name), last
