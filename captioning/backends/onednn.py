"""Convolutions and linear layers as oneDNN runs them fastest: weights packed, batch norms and activations within.

oneDNN comes with PyTorch, whose own kernels use it one operation at a time, unpacked. A batch norm
becomes part of the weights of the convolution before it, and an activation or the sum of a residual
block part of the same pass over memory. What is neither stays PyTorch's. Knows operations, no models.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from captioning.backends.network import Like, Network, aten, constant, dtype_of, finish, only_user, trace
from captioning.decoding.linear import Linear

#: What may follow a convolution in the same pass: oneDNN's names, and how numbers are given to them.
_ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.silu.default: "swish",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.hardtanh.default: "hardtanh",
    aten.leaky_relu.default: "leaky_relu",
    aten.gelu.default: "gelu",
}
#: Activations with numbers of their own, and what these are unless given.
_NUMBERS: dict[str, tuple[float, ...]] = {"hardtanh": (-1.0, 1.0), "leaky_relu": (0.01,)}
#: What `decoding.linear` calls those that it knows.
_OF_LINEAR = {"relu": "relu", "tanh": "tanh", "gelu": "gelu"}
_VIEWS = (aten.view.default, aten._unsafe_view.default)


def is_here() -> bool:
    """Whether this PyTorch has oneDNN's fused operations."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def prepare(network: Network, pixels: Tensor, dtype: torch.dtype) -> Network:
    """`network` for exactly as many images as `pixels` (B, S, S, 3) uint8 has, on a CPU."""
    module = trace(network, pixels, dtype)
    _fuse_convolutions(module)
    _fuse_linears(module)
    return finish(module)


class _Convolution(nn.Module):
    """A packed convolution of x (B, C, H, W), what is added to it, and its activation."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
        geometry: tuple[list[int], list[int], list[int], int],
        size: list[int],
        activation: tuple[str, list[float], str],
        into: bool,
    ) -> None:
        super().__init__()
        weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, size)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", bias.to(dtype), persistent=False)
        self._geometry = geometry
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


def _fuse_convolutions(module: fx.GraphModule) -> None:
    for count, node in enumerate(list(module.graph.find_nodes(op="call_function", target=aten.convolution.default))):
        x, weight_node, bias_node, stride, padding, dilation, transposed, _, groups = node.args
        weight = constant(module, weight_node)
        bias = None if bias_node is None else constant(module, bias_node)
        if weight is None or weight.ndim != 4 or transposed or (bias is None and bias_node is not None):
            continue
        x, weight, padding = _with_padding(x, weight, padding, dilation, groups)
        folded, last = _with_norm(module, node, weight.double(), None if bias is None else bias.double())
        other, last = _with_sum(node, last)
        # What is convolved cannot be written over on the way.
        into = other is not None and other is not x and _is_free(other, last)
        # oneDNN's sums know but one activation.
        activation, last = _with_activation(last, ("relu",) if other is not None else tuple(_ACTIVATIONS.values()))
        dtype = dtype_of(module, weight_node)
        layer = _Convolution(
            *folded, dtype, (padding, stride, dilation, groups), list(_value(x).shape), activation, into
        )
        _replace(module, f"convolution{count}", layer, last, (x,) if other is None else (x, other))


def _fuse_linears(module: fx.GraphModule) -> None:
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
        _replace(module, f"linear{count}", layer, last, (x,))


def _with_padding(
    x: Any, weight: Tensor, padding: list[int], dilation: list[int], groups: int
) -> tuple[Any, Tensor, list[int]]:
    """What is convolved before it was filled up with zeros, and a weight and a padding that do that.

    Zeros on one side (TensorFlow's `same`) are as many on both, and as many more in the weight, which costs less
    than a copy of the image where a channel is convolved by itself.
    """
    if x.target is not aten.constant_pad_nd.default or any(padding) or dilation != [1, 1] or only_user(x) is None:
        return x, weight, padding
    inner, sides, *value = x.args
    if len(sides) != 4 or min(sides) < 0 or any(value):
        return x, weight, padding
    left, right, top, bottom = sides
    if groups == 1 and (left != right or top != bottom):
        return x, weight, padding
    across, down = max(left, right), max(top, bottom)
    weight = functional.pad(weight, (across - left, across - right, down - top, down - bottom))
    return inner, weight, [down, across]


def _with_norm(
    module: fx.GraphModule, node: fx.Node, weight: Tensor, bias: Tensor | None
) -> tuple[tuple[Tensor, Tensor], fx.Node]:
    """Weight and bias with the batch norm that follows in them, if one does, and the operation they end with."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    norm: Any = only_user(node)
    if norm is None or norm.target is not aten.native_batch_norm.default or norm.args[5] is not False:
        return (weight, bias), node
    result = only_user(norm)
    statistics = [constant(module, each) for each in norm.args[1:5]]
    if result is None or result.target is not operator.getitem or statistics[2] is None or statistics[3] is None:
        return (weight, bias), node
    gain, shift, mean, variance = (None if each is None else each.double() for each in statistics)
    assert mean is not None
    assert variance is not None
    scale = (variance + norm.args[7]).rsqrt()
    scale = scale if gain is None else scale * gain
    bias = (bias - mean) * scale
    return (weight * scale[:, None, None, None], bias if shift is None else bias + shift), result


def _with_sum(node: fx.Node, last: fx.Node) -> tuple[fx.Node | None, fx.Node]:
    """What is added to the result, if it is of the same shape and there already, and the operation that adds it."""
    add = only_user(last)
    if add is None or add.target is not aten.add.Tensor or add.kwargs or len(add.args) != 2:
        return None, last
    other = add.args[1] if add.args[0] is last else add.args[0]
    if not isinstance(other, fx.Node) or other is last or other.op == "get_attr" or not other < node:
        return None, last
    one, two = _value(last), _value(other)
    if one.shape != two.shape or one.dtype != two.dtype:
        return None, last
    return other, add


def _is_free(other: fx.Node, add: fx.Node) -> bool:
    """Whether nothing reads `other` after `add`, nor a view of it: the sum may be written over it."""
    fresh = other.op == "call_module"
    reads = [user for user in other.users if user is not add]
    copies = (aten.convolution.default, aten.constant_pad_nd.default)
    return fresh and all((user.op == "call_module" or user.target in copies) and user < add for user in reads)


def _with_activation(last: fx.Node, known: tuple[str, ...]) -> tuple[tuple[str, list[float], str], fx.Node]:
    """The activation that follows (oneDNN's name, numbers, manner), if one does, and the operation they end with."""
    node = only_user(last)
    name = _ACTIVATIONS.get(node.target) if node is not None else None  # type: ignore[call-overload]
    if node is None or name is None or name not in known:
        return ("none", [], ""), last
    numbers = [float(number) for number in node.args[1:] if name in _NUMBERS]  # type: ignore[arg-type]
    numbers += _NUMBERS.get(name, ())[len(numbers) :]
    how = str(node.kwargs.get("approximate", "none")) if name == "gelu" else ""
    return (name, numbers, how), node


def _linear_activation(node: fx.Node) -> tuple[Any, fx.Node]:
    """The activation of a linear layer, whose result may be given another shape first."""
    view = only_user(node)
    view = view if view is not None and view.target in _VIEWS else None
    (name, _, how), last = _with_activation(view or node, tuple(_OF_LINEAR))
    if name == "none":
        return "none", node
    if view is not None:
        # First the activation, then the shape.
        last.replace_all_uses_with(view)
        return ("gelu_tanh" if how == "tanh" else name), node
    return ("gelu_tanh" if how == "tanh" else name), last


def _replace(module: fx.GraphModule, name: str, layer: nn.Module, last: fx.Node, inputs: tuple[Any, ...]) -> None:
    module.add_submodule(name, layer)
    with module.graph.inserting_before(last):
        call = module.graph.call_module(name, inputs)
    call.meta = dict(last.meta)
    last.replace_all_uses_with(call)
    module.graph.eliminate_dead_code()


def _value(node: Any) -> Like:
    """What a result was like in the trace."""
    like: Like = node.meta["val"]
    return like
