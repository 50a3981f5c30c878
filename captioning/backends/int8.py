"""Convolutions in int8: a quarter of the memory, and products three times as fast with VNNI, 1.5 times without.

Weights have a scale for each channel. Activations between two convolutions have one scale, which needs no
calibration images: the batch norm before them has learned mean and deviation of every channel (Nagel et al.
2019, "Data-free quantization through weight equalization and bias correction"). Sums of residual blocks, and
all other operations, stay float32.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from captioning.backends.layers import Activation, Convolution, match_activation, match_convolution, meta_of
from captioning.backends.network import Network, aten, constant, finish, trace
from captioning.backends.onednn import fuse_convolutions, fuse_linears

#: Values farther from the mean than this many standard deviations are clipped.
_MAX_DEVIATIONS = 6.0
#: Operations that normalise pixels, and those that change no value.
_NORMALISING = (aten.sub.Tensor, aten.div.Tensor)
_VALUE_PRESERVING = (
    aten._to_copy.default,
    aten.permute.default,
    aten.max_pool2d_with_indices.default,
    operator.getitem,
)
#: Activations whose output range follows from their input range.
_CLIPPING = ("relu", "hardtanh")


def is_available() -> bool:
    """Whether this build of PyTorch has oneDNN's int8 operations."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.onednn, "qconv_pointwise")


def prepare(network: Network, pixels: Tensor) -> Network:
    """`network` for exactly as many images as `pixels` (B, S, S, 3) uint8 has, on a CPU.

    Its results are close to those of `network`. Raises `ValueError` where no convolution's input range is inputs
    from a batch norm.
    """
    module = trace(network, pixels)
    if not _quantise_convolutions(module):
        raise ValueError("it has no convolutions after batch norms, which determine the range of their inputs.")
    fuse_convolutions(module)
    fuse_linears(module)
    return finish(module)


@dataclass(frozen=True)
class _Range:
    """The range of a result's values, and each channel's mean and standard deviation where they are inputs."""

    low: float
    high: float
    statistics: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(statistics: tuple[Tensor, Tensor]) -> "_Range":
        """The range of all channels, up to `_MAX_DEVIATIONS`."""
        mean, deviation = statistics
        return _Range(
            float((mean - _MAX_DEVIATIONS * deviation).min()),
            float((mean + _MAX_DEVIATIONS * deviation).max()),
            statistics,
        )

    def after(self, activation: Activation) -> "_Range":
        """The range after an activation."""
        name, parameters, _ = activation
        if name == "none":
            return self
        low, high = (0.0, math.inf) if name == "relu" else parameters
        clipped = [min(max(bound, low), high) for bound in (self.low, self.high)]
        return _Range(clipped[0], clipped[1], _after_relu(self.statistics) if name == "relu" else None)

    def normalised(self, operation: Any, by: Tensor) -> "_Range":
        """The range after subtraction of, or division by, a number for each channel."""
        bounds = torch.cat([operation(torch.tensor(bound), by.flatten()) for bound in (self.low, self.high)])
        return _Range(float(bounds.min()), float(bounds.max()))

    @property
    def quantisation(self) -> tuple[float, int]:
        """Scale and zero point of a uint8 that covers the range."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = max((high - low) / 255, 1e-8)
        return scale, round(-low / scale)


def _after_relu(statistics: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of a normal distribution after ReLU."""
    if statistics is None:
        return None
    mean, deviation = statistics[0], statistics[1].clamp(min=1e-12)
    positive = torch.special.ndtr(mean / deviation)
    density = torch.exp(-0.5 * (mean / deviation).square()) / math.sqrt(2 * math.pi)
    new_mean = mean * positive + deviation * density
    square = (mean.square() + deviation.square()) * positive + mean * deviation * density
    return new_mean, (square - new_mean.square()).clamp(min=0).sqrt()


class _Quantise(nn.Module):
    """float32 to uint8."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self._inverse_scale = 1 / scale
        # Conversion to integers truncates, so half is added to round.
        self._offset = torch.tensor(zero_point + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self._offset, x, alpha=self._inverse_scale).clamp_(0, 255).to(torch.uint8)


class _Convolution(nn.Module):
    """A convolution of uint8 x (B, C, H, W) and its activation, to uint8 or (without `output_quantisation`) float32."""

    def __init__(
        self,
        convolution: Convolution,
        size: list[int],
        activation: Activation,
        input_quantisation: tuple[float, int],
        output_quantisation: tuple[float, int] | None,
    ) -> None:
        super().__init__()
        scales = (_weight_ranges(convolution.weight) / 127).clamp(min=1e-12)
        weight = (convolution.weight / scales[:, None, None, None]).round().to(torch.int8)
        scales = scales.float()
        packed = torch.ops.onednn.qconv_prepack(weight, scales, *input_quantisation, *convolution.geometry, size)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("zero_points", torch.zeros(len(scales), dtype=torch.int), persistent=False)
        self.register_buffer("bias", convolution.bias.float(), persistent=False)
        self._input_quantisation = input_quantisation
        self._arguments = (
            *convolution.geometry,
            *(output_quantisation or (1.0, 0)),
            torch.float32 if output_quantisation is None else torch.uint8,
            *activation,
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.onednn.qconv_pointwise.default(
            x, *self._input_quantisation, self.weight, self.scales, self.zero_points, self.bias, *self._arguments
        )
        return result


def _weight_ranges(weight: Tensor) -> Tensor:
    """The weight that 127 stands for in each output channel (O,) of a convolution's weight (O, I, H, W).

    The largest absolute weight, or the largest sum of two weights of one sign in adjacent input channels: without
    VNNI a processor adds the products of such pairs in 16 bits, which saturates above 128 · 255. The same range is
    used everywhere, so that captions do not depend on the processor. Depthwise convolutions have no such sums.
    """
    largest = weight.abs().amax((1, 2, 3))
    if weight.shape[1] == 1:
        return largest
    padded = functional.pad(weight, (0, 0, 0, 0, 0, weight.shape[1] % 2))
    pairs = padded.view(len(weight), -1, 2, *weight.shape[2:])
    same_sign = torch.stack((pairs.clamp(min=0), -pairs.clamp(max=0))).sum(3)
    return torch.maximum(largest, same_sign.amax((0, 2, 3, 4)))


def _quantise_convolutions(module: fx.GraphModule) -> bool:
    """Quantise the convolutions whose input range is known; False where only the pixels' is."""
    graph, ranges = module.graph, _ranges(module)
    inputs = {node: match.x for node in graph.nodes if (match := match_convolution(module, node)) and match.x in ranges}
    quantised: dict[fx.Node, fx.Node] = {}
    for count, node in enumerate(inputs):
        # Matched again: its input may have been replaced.
        convolution = match_convolution(module, node)
        assert convolution is not None
        activation, last = match_activation(convolution.last, _CLIPPING)
        x = convolution.x
        input_quantisation = ranges[x].quantisation
        if x not in quantised:
            module.add_submodule(f"quantise{count}", _Quantise(*input_quantisation))
            with graph.inserting_after(x):
                quantised[x] = graph.call_module(f"quantise{count}", (x,))
        stays_int8 = last in ranges and all(inputs.get(reader) is last for reader in _readers(last))
        output_quantisation = ranges[last].quantisation if stays_int8 else None
        size = list(meta_of(x).shape)
        layer = _Convolution(convolution, size, activation, input_quantisation, output_quantisation)
        module.add_submodule(f"int8_convolution{count}", layer)
        with graph.inserting_before(last):
            call = graph.call_module(f"int8_convolution{count}", (quantised[x],))
        call.meta = dict(last.meta)
        if stays_int8:
            quantised[last] = call
        else:
            last.replace_all_uses_with(call)
            if last in ranges:
                ranges[call] = ranges[last]
    graph.eliminate_dead_code()
    return len(inputs) > 1


def _readers(node: fx.Node) -> list[fx.Node]:
    """The operations that read a result, directly or after padding."""
    return [
        reader
        for user in node.users
        for reader in (user.users if user.target is aten.constant_pad_nd.default else (user,))
    ]


def _ranges(module: fx.GraphModule) -> dict[fx.Node, _Range]:
    """The results whose range is known: from batch norms, or since they are computed from pixels alone."""
    ranges: dict[fx.Node, _Range] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            ranges[node] = _Range(0.0, 255.0)
            continue
        convolution = match_convolution(module, node)
        if convolution is not None:
            if convolution.statistics is not None:
                activation, last = match_activation(convolution.last, _CLIPPING)
                ranges[last] = _Range.of(convolution.statistics).after(activation)
            continue
        if node.target in _NORMALISING and node.args[0] in ranges:
            by = node.args[1]
            by = torch.tensor(by) if isinstance(by, int | float) else constant(module, by)
            if by is not None:
                ranges[node] = ranges[node.args[0]].normalised(node.target, by)
                continue
        inputs = [ranges.get(each) for each in node.all_input_nodes]
        if node in ranges or None in inputs or not inputs:
            continue
        [first, *others] = [each for each in inputs if each is not None]
        if node.target is aten.add.Tensor and not node.kwargs and others:
            if first.statistics is not None and others[0].statistics is not None and _same_shape(node):
                one, two = first.statistics, others[0].statistics
                ranges[node] = _Range.of((one[0] + two[0], torch.hypot(one[1], two[1])))
        elif node.target in _VALUE_PRESERVING:
            ranges[node] = first
        elif node.target is aten.constant_pad_nd.default and not any(node.args[2:]):
            ranges[node] = _Range(min(first.low, 0.0), max(first.high, 0.0))
        elif not others:
            activation, last = match_activation(node.all_input_nodes[0], _CLIPPING)
            if last is node:
                ranges[node] = first.after(activation)
    return ranges


def _same_shape(node: fx.Node) -> bool:
    return len({meta_of(each).shape for each in node.all_input_nodes}) == 1
