"""Selects the back end for a network: the one asked for, or the fastest available one with the same results.

Results are compared on a few generated images, and speed by the CPU time that they take, so that processes
starting together on one machine do not distort each other's measurements. A back end changes the speed and
never the results, beyond the last digits.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from captioning.backends import compiled, int8, onednn
from captioning.backends.names import EncoderBackend, Precision
from captioning.backends.network import Network
from captioning.backends.slices import Slices
from captioning.errors import SettingsError

#: Images that a back end processes at a time, so that intermediate results stay in a core's cache.
SLICE = 4
#: The largest relative error allowed: in float32, many times that of rounding; in bfloat16, a multiple of the error
#: of PyTorch's own results.
_FP32_TOLERANCE, _BF16_TOLERANCE = 1e-4, 1.5
#: The same for int8: a larger error means that something is broken.
_INT8_TOLERANCE = 0.3
#: bfloat16 that takes this many times as long as float32 is emulated by the processor.
_EMULATED = 3.0
#: A back end's time is the minimum of at least so many runs, repeated for at least so many seconds: processes of one
#: machine should choose alike.
_ROUNDS, _SECONDS = 2, 0.05
#: Back ends by name: each prepares a network for as many images as the sample has.
_PREPARE: dict[str, Callable[[Network, Tensor, torch.dtype], Network]] = {
    "onednn": onednn.prepare,
    "compile": compiled.prepare,
}
#: Those that `auto` tries: they are ready at once.
_AUTO = ("onednn",)


@dataclass(frozen=True)
class Choice:
    """The back end that runs a network, and why."""

    name: str
    run: Network = field(repr=False)
    #: Seconds an image of the back ends that were measured.
    seconds: Mapping[str, float] = field(default_factory=dict)
    #: Why the others were not chosen.
    rejected: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        taken = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in self.seconds.items())
        reasons = "".join(f"; not {name}: {reason}" for name, reason in self.rejected.items())
        return self.name + (f" ({taken} per image)" if taken else "") + reasons


def choose(
    network: Network, *, backend: EncoderBackend, device: torch.device, precision: Precision, image_size: int
) -> Choice:
    """The back end for `network`, whose weights are on `device`, for pixels (B, S, S, 3) with S `image_size`.

    With `precision` bf16 the caller enables autocast. Raises `SettingsError` for a back end that was asked for by
    name and cannot run the network, and where int8 is not available.
    """
    if precision == "int8":
        return _choose_int8(network, backend, device, image_size)
    if device.type != "cpu" and backend not in ("auto", "eager"):
        raise SettingsError(
            f"The image encoder's back end {backend!r} is for CPUs, but this captioner is on {device}: set it to auto."
        )
    if device.type != "cpu" or backend == "eager":
        return Choice("eager", network)
    pixels = _sample_images(image_size)
    with torch.inference_mode():
        reference, taken = _measure(network, pixels)
        tolerance = _FP32_TOLERANCE
        if precision == "bf16":
            fp32_taken = taken
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rounded, taken = _measure(network, pixels)
            tolerance = _BF16_TOLERANCE * _relative_error(rounded, reference)
            if taken > _EMULATED * fp32_taken:
                warnings.warn(
                    f"bf16 takes {taken / fp32_taken:.0f} times as long as fp32 in the image encoder: this processor "
                    "seems to have no instructions for it. Set precision to fp32 or int8.",
                    stacklevel=3,
                )
        seconds = {"eager": taken}
        ready: dict[str, Network] = {}
        rejected: dict[str, str] = {}
        for name in _AUTO if backend == "auto" else (backend,):
            try:
                run = _PREPARE[name](network, pixels, torch.bfloat16 if precision == "bf16" else torch.float32)
                found, taken = _measure(run, pixels)
                _check_error(_relative_error(found, reference), tolerance)
                seconds[name] = taken
                ready[name] = Slices(run, SLICE)
            except Exception as error:
                # Whatever a back end fails on, PyTorch can run.
                rejected[name] = _reason(error)
    if backend != "auto" and not ready:
        raise SettingsError(
            f"The image encoder's back end {backend!r} cannot run this captioner here: "
            f"{rejected[backend].rstrip('.')}. Set it to auto."
        )
    best = min(ready, key=seconds.__getitem__, default="eager")
    if backend == "auto" and best != "eager" and seconds[best] > seconds["eager"]:
        rejected[best] = "it is no faster here"
        best = "eager"
    return Choice(best, ready.get(best, network), seconds, rejected)


def _choose_int8(network: Network, backend: EncoderBackend, device: torch.device, image_size: int) -> Choice:
    """oneDNN in int8, which no other back end supports: it changes the results, so it is not a matter of speed."""
    if device.type != "cpu" or backend not in ("auto", "onednn"):
        conflict = f"device is {device}" if device.type != "cpu" else f"encoder is {backend}"
        raise SettingsError(
            f"Precision int8 is for CPUs and oneDNN, but {conflict}: set device to cpu and encoder to auto, "
            "or another precision."
        )
    pixels = _sample_images(image_size)
    with torch.inference_mode():
        try:
            run = int8.prepare(network, pixels)
            found, taken = _measure(run, pixels)
            _check_error(_relative_error(found, network(pixels)), _INT8_TOLERANCE)
        except Exception as error:
            raise SettingsError(f"This captioner's image encoder cannot run in int8: {_reason(error)}") from error
    return Choice("onednn", Slices(run, SLICE), {"onednn": taken})


def _reason(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _check_error(error: float, tolerance: float) -> None:
    if error > tolerance:
        raise ValueError(f"its results have a relative error of {error:.1e}; at most {tolerance:.1e} is allowed.")


def _sample_images(size: int) -> Tensor:
    """Fixed images (SLICE, size, size, 3) uint8: patches of colour, one plain and the others noisy."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(SLICE, 3, 7, 7, generator=generator)
    images = functional.interpolate(patches, (size, size), mode="bilinear").permute(0, 2, 3, 1)
    noise = torch.rand(SLICE, size, size, 3, generator=generator) - 0.5
    strength = torch.arange(SLICE)[:, None, None, None] / SLICE
    return ((images + noise * strength).clamp(0, 1) * 255).to(torch.uint8)


def _relative_error(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest relative error of the results; infinite where they are not finite."""
    errors = [0.0]
    for one, two in zip(found, reference, strict=True):
        if one.shape != two.shape:
            raise ValueError(f"it returns {tuple(one.shape)} where PyTorch returns {tuple(two.shape)}.")
        if two.numel():
            relative = float((one.float() - two.float()).norm() / two.float().norm().clamp(min=1e-12))
            errors.append(relative if math.isfinite(relative) else math.inf)
    return max(errors)


def _measure(network: Network, pixels: Tensor) -> tuple[Sequence[Tensor], float]:
    """The network's results, and seconds an image: this thread's CPU time, or wall time with several threads."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    found: Sequence[Tensor] = ()
    taken: list[float] = []
    while len(taken) < _ROUNDS or sum(taken) < _SECONDS:
        begin = clock()
        found = network(pixels)
        taken.append(clock() - begin)
    return found, min(taken) / len(pixels)
