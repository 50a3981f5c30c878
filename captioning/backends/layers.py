"""What belongs to a convolution in a written-down network: padding before it, batch norm, sum and activation behind.

Finds them and makes weights of what can be weights; what runs them is a back end's. Knows operations, no models.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from captioning.backends.network import Like, aten, constant, dtype_of, only_user

#: What may follow a convolution in the same pass: oneDNN's names, and how numbers are given to them.
_NAMES = {
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
ACTIVATIONS = tuple(_NAMES.values())
#: Stride, padding, dilation, groups.
Geometry = tuple[list[int], list[int], list[int], int]
#: oneDNN's name of an activation, its numbers, and its manner where there are several.
Activation = tuple[str, list[float], str]


@dataclass(frozen=True)
class Convolution:
    """A convolution of `x` with what is folded into it; `last` is the operation that they end with."""

    x: fx.Node
    weight: Tensor
    bias: Tensor
    geometry: Geometry
    #: The type that it is computed in; `weight` and `bias` are float64.
    dtype: torch.dtype
    last: fx.Node
    #: Mean and standard deviation of each channel of the result, as the batch norm has learned them.
    spread: tuple[Tensor, Tensor] | None


def convolution_at(module: fx.GraphModule, node: fx.Node) -> Convolution | None:
    """The convolution at `node` with padding and batch norm folded in; None for one that is not of constant weights."""
    if node.target is not aten.convolution.default:
        return None
    arguments: Any = node.args
    x, weight_node, bias_node, stride, padding, dilation, transposed, _, groups = arguments
    weight, bias = constant(module, weight_node), constant(module, bias_node)
    if weight is None or weight.ndim != 4 or transposed or (bias is None and bias_node is not None):
        return None
    weight = weight.double()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.double()
    x, weight, padding = _with_padding(x, weight, padding, dilation, groups)
    weight, bias, last, spread = _with_norm(module, node, weight, bias)
    dtype = dtype_of(module, weight_node)
    return Convolution(x, weight, bias, (stride, padding, dilation, groups), dtype, last, spread)


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
    module: fx.GraphModule, node: fx.Node, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, fx.Node, tuple[Tensor, Tensor] | None]:
    """Weight and bias with the batch norm that follows in them, if one does, what they end with, and its spread."""
    norm: Any = only_user(node)
    if norm is None or norm.target is not aten.native_batch_norm.default or norm.args[5] is not False:
        return weight, bias, node, None
    result = only_user(norm)
    statistics = [constant(module, each) for each in norm.args[1:5]]
    if result is None or result.target is not operator.getitem or statistics[2] is None or statistics[3] is None:
        return weight, bias, node, None
    gain, shift, mean, variance = (None if each is None else each.double() for each in statistics)
    assert mean is not None
    assert variance is not None
    gain = torch.ones_like(mean) if gain is None else gain
    shift = torch.zeros_like(mean) if shift is None else shift
    scale = gain * (variance + norm.args[7]).rsqrt()
    return weight * scale[:, None, None, None], (bias - mean) * scale + shift, result, (shift, gain.abs())


def with_sum(node: fx.Node, last: fx.Node) -> tuple[fx.Node | None, fx.Node]:
    """What is added to the result, if it is of the same shape and there already, and the operation that adds it."""
    add = only_user(last)
    if add is None or add.target is not aten.add.Tensor or add.kwargs or len(add.args) != 2:
        return None, last
    other = add.args[1] if add.args[0] is last else add.args[0]
    if not isinstance(other, fx.Node) or other is last or other.op == "get_attr" or not other < node:
        return None, last
    one, two = value(last), value(other)
    if one.shape != two.shape or one.dtype != two.dtype:
        return None, last
    return other, add


def with_activation(last: fx.Node, known: tuple[str, ...]) -> tuple[Activation, fx.Node]:
    """The activation that follows (oneDNN's name, numbers, manner), if one does, and the operation they end with."""
    node = only_user(last)
    name = _NAMES.get(node.target) if node is not None else None  # type: ignore[call-overload]
    if node is None or name is None or name not in known:
        return ("none", [], ""), last
    numbers = [float(number) for number in node.args[1:] if name in _NUMBERS]  # type: ignore[arg-type]
    numbers += _NUMBERS.get(name, ())[len(numbers) :]
    how = str(node.kwargs.get("approximate", "none")) if name == "gelu" else ""
    return (name, numbers, how), node


def replace(module: fx.GraphModule, name: str, layer: nn.Module, last: fx.Node, inputs: tuple[Any, ...]) -> None:
    """Put `layer`, which reads `inputs`, in the place of `last` and all before it that nothing else reads."""
    module.add_submodule(name, layer)
    with module.graph.inserting_before(last):
        call = module.graph.call_module(name, inputs)
    call.meta = dict(last.meta)
    last.replace_all_uses_with(call)
    module.graph.eliminate_dead_code()


def value(node: Any) -> Like:
    """What a result was like in the trace."""
    like: Like = node.meta["val"]
    return like
