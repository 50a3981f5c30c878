"""Convolutions in a traced network: matches the padding before them, and batch norm, sum and activation after them.

Folds what can be folded into weights; back ends run the result.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from captioning.backends.network import TensorMeta, aten, constant, dtype_of, single_user

#: oneDNN's names of the activations that can be fused with a convolution.
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
#: Parameters of activations that have some, and their defaults.
_PARAMETERS: dict[str, tuple[float, ...]] = {"hardtanh": (-1.0, 1.0), "leaky_relu": (0.01,)}
ACTIVATIONS = tuple(_NAMES.values())
#: Stride, padding, dilation, groups.
Geometry = tuple[list[int], list[int], list[int], int]
#: oneDNN's name of an activation, its parameters, and its algorithm where there are several.
Activation = tuple[str, list[float], str]


@dataclass(frozen=True)
class Convolution:
    """A convolution of `x` with what is folded into it; `last` is the last operation matched."""

    x: fx.Node
    weight: Tensor
    bias: Tensor
    geometry: Geometry
    #: The type of the computation; `weight` and `bias` are float64.
    dtype: torch.dtype
    last: fx.Node
    #: Mean and standard deviation of each output channel, from the batch norm; None without one.
    statistics: tuple[Tensor, Tensor] | None


def match_convolution(module: fx.GraphModule, node: fx.Node) -> Convolution | None:
    """The convolution at `node` with padding and batch norm folded in; None where its weights are not constant."""
    if node.target is not aten.convolution.default:
        return None
    arguments: Any = node.args
    x, weight_node, bias_node, stride, padding, dilation, transposed, _, groups = arguments
    weight, bias = constant(module, weight_node), constant(module, bias_node)
    if weight is None or weight.ndim != 4 or transposed or (bias is None and bias_node is not None):
        return None
    weight = weight.double()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.double()
    x, weight, padding = _fold_padding(x, weight, padding, dilation, groups)
    weight, bias, last, statistics = _fold_batch_norm(module, node, weight, bias)
    dtype = dtype_of(module, weight_node)
    return Convolution(x, weight, bias, (stride, padding, dilation, groups), dtype, last, statistics)


def _fold_padding(
    x: Any, weight: Tensor, padding: list[int], dilation: list[int], groups: int
) -> tuple[Any, Tensor, list[int]]:
    """The input before a zero-padding operation, and a weight and padding that include it.

    One-sided padding (TensorFlow's `same`) becomes two-sided, with zeros added to the weight. For depthwise
    convolutions this costs less than a padded copy of the input.
    """
    if x.target is not aten.constant_pad_nd.default or any(padding) or dilation != [1, 1] or single_user(x) is None:
        return x, weight, padding
    inner, sides, *fill = x.args
    if len(sides) != 4 or min(sides) < 0 or any(fill):
        return x, weight, padding
    left, right, top, bottom = sides
    if groups == 1 and (left != right or top != bottom):
        return x, weight, padding
    across, down = max(left, right), max(top, bottom)
    weight = functional.pad(weight, (across - left, across - right, down - top, down - bottom))
    return inner, weight, [down, across]


def _fold_batch_norm(
    module: fx.GraphModule, node: fx.Node, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, fx.Node, tuple[Tensor, Tensor] | None]:
    """Weight and bias with a following batch norm folded in, the last operation, and the norm's statistics."""
    norm: Any = single_user(node)
    if norm is None or norm.target is not aten.native_batch_norm.default or norm.args[5] is not False:
        return weight, bias, node, None
    result = single_user(norm)
    parameters = [constant(module, each) for each in norm.args[1:5]]
    if result is None or result.target is not operator.getitem or parameters[2] is None or parameters[3] is None:
        return weight, bias, node, None
    gain, shift, mean, variance = (None if each is None else each.double() for each in parameters)
    assert mean is not None
    assert variance is not None
    gain = torch.ones_like(mean) if gain is None else gain
    shift = torch.zeros_like(mean) if shift is None else shift
    scale = gain * (variance + norm.args[7]).rsqrt()
    return weight * scale[:, None, None, None], (bias - mean) * scale + shift, result, (shift, gain.abs())


def match_sum(node: fx.Node, last: fx.Node) -> tuple[fx.Node | None, fx.Node]:
    """The other operand of a sum that follows, if it has the same shape and is computed earlier, and the sum."""
    add = single_user(last)
    if add is None or add.target is not aten.add.Tensor or add.kwargs or len(add.args) != 2:
        return None, last
    other = add.args[1] if add.args[0] is last else add.args[0]
    if not isinstance(other, fx.Node) or other is last or other.op == "get_attr" or not other < node:
        return None, last
    one, two = meta_of(last), meta_of(other)
    if one.shape != two.shape or one.dtype != two.dtype:
        return None, last
    return other, add


def match_activation(last: fx.Node, known: tuple[str, ...]) -> tuple[Activation, fx.Node]:
    """The activation that follows, if there is a `known` one, and the last operation."""
    node = single_user(last)
    name = _NAMES.get(node.target) if node is not None else None  # type: ignore[call-overload]
    if node is None or name is None or name not in known:
        return ("none", [], ""), last
    parameters = [float(number) for number in node.args[1:] if name in _PARAMETERS]  # type: ignore[arg-type]
    parameters += _PARAMETERS.get(name, ())[len(parameters) :]
    algorithm = str(node.kwargs.get("approximate", "none")) if name == "gelu" else ""
    return (name, parameters, algorithm), node


def replace(module: fx.GraphModule, name: str, layer: nn.Module, last: fx.Node, inputs: tuple[Any, ...]) -> None:
    """Replace `last`, and all before it that becomes unused, by `layer` of `inputs`."""
    module.add_submodule(name, layer)
    with module.graph.inserting_before(last):
        call = module.graph.call_module(name, inputs)
    call.meta = dict(last.meta)
    last.replace_all_uses_with(call)
    module.graph.eliminate_dead_code()


def meta_of(node: Any) -> TensorMeta:
    """Shape and type of a result in the trace."""
    meta: TensorMeta = node.meta["val"]
    return meta
