"""Convolutions in 8-bit whole numbers: a quarter of the memory, and products three times as fast where there is VNNI,
and half as fast again elsewhere.

Weights have a scale for each channel. What flows between two convolutions has one scale, which needs no
photos to be found: the batch norm before it has learned mean and deviation of every channel (Nagel et al.
2019, "Data-free quantization through weight equalization and bias correction"). Sums of residual
blocks, and all that is no convolution, stay float32. Knows operations, no models.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from captioning.backends.layers import Activation, Convolution, convolution_at, value, with_activation
from captioning.backends.network import Network, aten, constant, finish, trace
from captioning.backends.onednn import fuse_convolutions, fuse_linears

#: Deviations from the mean up to which numbers are told apart; those beyond are clipped.
_DEVIATIONS = 6.0
#: Operations by which pixels are normalised, and those that change no number.
_NORMALISING = (aten.sub.Tensor, aten.div.Tensor)
_KEEPING = (
    aten._to_copy.default,
    aten.permute.default,
    aten.max_pool2d_with_indices.default,
    operator.getitem,
)
#: Activations that keep a known range known.
_CLIPPING = ("relu", "hardtanh")


def is_here() -> bool:
    """Whether this PyTorch has oneDNN's operations on whole numbers."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.onednn, "qconv_pointwise")


def prepare(network: Network, pixels: Tensor) -> Network:
    """`network` for exactly as many images as `pixels` (B, S, S, 3) uint8 has, on a CPU.

    What it gives is near to what `network` gives. Raises `ValueError` where batch norms tell the range of
    nothing that is convolved.
    """
    module = trace(network, pixels)
    if not _use_whole_numbers(module):
        raise ValueError("it has no convolutions behind batch norms, which would tell what their numbers are.")
    fuse_convolutions(module)
    fuse_linears(module)
    return finish(module)


@dataclass(frozen=True)
class _Range:
    """Where the numbers of a result lie, and, where that is known, each channel's mean and deviation."""

    low: float
    high: float
    spread: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(spread: tuple[Tensor, Tensor]) -> "_Range":
        """What lies within so many deviations of any channel."""
        mean, deviation = spread
        return _Range(
            float((mean - _DEVIATIONS * deviation).min()), float((mean + _DEVIATIONS * deviation).max()), spread
        )

    def after(self, activation: Activation) -> "_Range":
        """What an activation makes of it."""
        name, numbers, _ = activation
        if name == "none":
            return self
        low, high = (0.0, math.inf) if name == "relu" else numbers
        clipped = [min(max(end, low), high) for end in (self.low, self.high)]
        return _Range(clipped[0], clipped[1], _rectified(self.spread) if name == "relu" else None)

    def normalised(self, operation: Any, by: Tensor) -> "_Range":
        """What becomes of it when it is diminished or divided by numbers of each channel."""
        ends = torch.cat([operation(torch.tensor(end), by.flatten()) for end in (self.low, self.high)])
        return _Range(float(ends.min()), float(ends.max()))

    @property
    def steps(self) -> tuple[float, int]:
        """Size of a step, and which of the 256 whole numbers stands for zero."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        size = max((high - low) / 255, 1e-8)
        return size, round(-low / size)


def _rectified(spread: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of normally distributed numbers, the negative ones set to zero."""
    if spread is None:
        return None
    mean, deviation = spread[0], spread[1].clamp(min=1e-12)
    share = torch.special.ndtr(mean / deviation)
    density = torch.exp(-0.5 * (mean / deviation).square()) / math.sqrt(2 * math.pi)
    new = mean * share + deviation * density
    square = (mean.square() + deviation.square()) * share + mean * deviation * density
    return new, (square - new.square()).clamp(min=0).sqrt()


class _Round(nn.Module):
    """Float32 to whole numbers."""

    def __init__(self, steps: tuple[float, int]) -> None:
        super().__init__()
        size, zero = steps
        self._per_step = 1 / size
        # Conversion cuts off what is behind the point.
        self._start = torch.tensor(zero + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self._start, x, alpha=self._per_step).clamp_(0, 255).to(torch.uint8)


class _Convolution(nn.Module):
    """A convolution of whole numbers x (B, C, H, W) with its activation, to whole numbers or (no `after`) float32."""

    def __init__(
        self,
        found: Convolution,
        size: list[int],
        activation: Activation,
        before: tuple[float, int],
        after: tuple[float, int] | None,
    ) -> None:
        super().__init__()
        scales = (_highest(found.weight) / 127).clamp(min=1e-12)
        whole = (found.weight / scales[:, None, None, None]).round().to(torch.int8)
        scales = scales.float()
        packed = torch.ops.onednn.qconv_prepack(whole, scales, *before, *found.geometry, size)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int), persistent=False)
        self.register_buffer("bias", found.bias.float(), persistent=False)
        self._before = before
        self._how = (
            *found.geometry,
            *(after or (1.0, 0)),
            torch.float32 if after is None else torch.uint8,
            *activation,
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.onednn.qconv_pointwise.default(
            x, *self._before, self.weight, self.scales, self.zeros, self.bias, *self._how
        )
        return result


def _highest(weight: Tensor) -> Tensor:
    """What 127 is to stand for in each output channel (O,) of a convolution's weight (O, I, H, W).

    The highest of its weights; or, of two input channels side by side, the highest that two of one sign add up to.
    Without VNNI a processor adds up products of the two in 16 bits and cuts off what is more than 128 · 255. So it
    is everywhere, for captions are not to depend on the processor. Depthwise convolutions have no such sums.
    """
    highest = weight.abs().amax((1, 2, 3))
    if weight.shape[1] == 1:
        return highest
    padded = functional.pad(weight, (0, 0, 0, 0, 0, weight.shape[1] % 2))
    pairs = padded.view(len(weight), -1, 2, *weight.shape[2:])
    of_one_sign = torch.stack((pairs.clamp(min=0), -pairs.clamp(max=0))).sum(3)
    return torch.maximum(highest, of_one_sign.amax((0, 2, 3, 4)))


def _use_whole_numbers(module: fx.GraphModule) -> bool:
    """Convolutions whose input's range is known, in whole numbers; False where pixels alone have one."""
    graph, ranges = module.graph, _ranges(module)
    reads = {node: seen.x for node in graph.nodes if (seen := convolution_at(module, node)) and seen.x in ranges}
    whole: dict[fx.Node, fx.Node] = {}
    for count, node in enumerate(reads):
        # Anew: what it reads may be another operation's by now.
        convolution = convolution_at(module, node)
        assert convolution is not None
        activation, last = with_activation(convolution.last, _CLIPPING)
        x = convolution.x
        before = ranges[x].steps
        if x not in whole:
            module.add_submodule(f"round{count}", _Round(before))
            with graph.inserting_after(x):
                whole[x] = graph.call_module(f"round{count}", (x,))
        stays = last in ranges and all(reads.get(reader) is last for reader in _readers(last))
        layer = _Convolution(
            convolution, list(value(x).shape), activation, before, ranges[last].steps if stays else None
        )
        module.add_submodule(f"whole{count}", layer)
        with graph.inserting_before(last):
            call = graph.call_module(f"whole{count}", (whole[x],))
        call.meta = dict(last.meta)
        if stays:
            whole[last] = call
        else:
            last.replace_all_uses_with(call)
            if last in ranges:
                ranges[call] = ranges[last]
    graph.eliminate_dead_code()
    return len(reads) > 1


def _readers(node: fx.Node) -> list[fx.Node]:
    """What reads a result, be it filled up with zeros first."""
    return [
        reader
        for user in node.users
        for reader in (user.users if user.target is aten.constant_pad_nd.default else (user,))
    ]


def _ranges(module: fx.GraphModule) -> dict[fx.Node, _Range]:
    """The results whose range batch norms tell, and those that are made of pixels alone."""
    ranges: dict[fx.Node, _Range] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            ranges[node] = _Range(0.0, 255.0)
            continue
        convolution = convolution_at(module, node)
        if convolution is not None:
            if convolution.spread is not None:
                activation, last = with_activation(convolution.last, _CLIPPING)
                ranges[last] = _Range.of(convolution.spread).after(activation)
            continue
        if node.target in _NORMALISING and node.args[0] in ranges:
            by = node.args[1]
            by = torch.tensor(by) if isinstance(by, int | float) else constant(module, by)
            if by is not None:
                ranges[node] = ranges[node.args[0]].normalised(node.target, by)
                continue
        known = [ranges.get(each) for each in node.all_input_nodes]
        if node in ranges or None in known or not known:
            continue
        [first, *others] = [each for each in known if each is not None]
        if node.target is aten.add.Tensor and not node.kwargs and others:
            if first.spread is not None and others[0].spread is not None and _same_shape(node):
                one, two = first.spread, others[0].spread
                ranges[node] = _Range.of((one[0] + two[0], torch.hypot(one[1], two[1])))
        elif node.target in _KEEPING:
            ranges[node] = first
        elif node.target is aten.constant_pad_nd.default and not any(node.args[2:]):
            ranges[node] = _Range(min(first.low, 0.0), max(first.high, 0.0))
        elif not others:
            activation, last = with_activation(node.all_input_nodes[0], _CLIPPING)
            if last is node:
                ranges[node] = first.after(activation)
    return ranges


def _same_shape(node: fx.Node) -> bool:
    return len({value(each).shape for each in node.all_input_nodes}) == 1
