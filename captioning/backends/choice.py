"""Which back end runs a network: as asked for, or the fastest of those that are here and give the same numbers.

What is the same is told by a few made pictures, what is fastest by the processor time that they take, so
that processes which begin together on the cores of one machine do not mislead one another. A
back end changes the speed and never what comes out, beyond the last digits. Knows no captioners.
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

#: Images that a back end takes at a time: what they become on the way stays in a core's cache.
SLICE = 4
#: Most that results may be off, as a share of their size: many times what rounding does in float32; in
#: bfloat16 what rounding does to PyTorch's own, and somewhat more.
_EXACT, _ROUNDED = 1e-4, 1.5
#: The same of whole numbers: what is farther off is broken.
_COARSE = 0.3
#: So many times what float32 takes bfloat16 takes only where a processor does not know it.
_SLOW = 3.0
#: The least of so many runs, and of as many more as fit into so many seconds, is what a back end takes: processes
#: of one machine should choose alike.
_ROUNDS, _SECONDS = 2, 0.05
#: How a back end makes a network its own, for as many images as it is shown. Those of `auto` come first.
_PREPARE: dict[str, Callable[[Network, Tensor, torch.dtype], Network]] = {
    "onednn": onednn.prepare,
    "compile": compiled.prepare,
}
_READY_AT_ONCE = ("onednn",)


@dataclass(frozen=True)
class Choice:
    """The back end that runs a network, and why."""

    name: str
    run: Network = field(repr=False)
    #: Seconds an image of those that were tried.
    seconds: Mapping[str, float] = field(default_factory=dict)
    #: Why others do not run it.
    passed_over: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        taken = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in self.seconds.items())
        reasons = "".join(f"; not {name}: {reason}" for name, reason in self.passed_over.items())
        return self.name + (f" ({taken} an image)" if taken else "") + reasons


def choose(
    network: Network, *, backend: EncoderBackend, device: torch.device, precision: Precision, image_size: int
) -> Choice:
    """The back end for `network`, whose weights are on `device`, for pixels (B, S, S, 3) with S `image_size`.

    With `precision` bf16 the caller has autocast on. Raises `SettingsError` for a back end that was asked for by
    name and cannot run it, and for int8 where it cannot be had.
    """
    if precision == "int8":
        return _choose_int8(network, backend, device, image_size)
    if device.type != "cpu" and backend not in ("auto", "eager"):
        raise SettingsError(
            f"The image encoder's back end {backend!r} is for CPUs, and this captioner is on {device}: set it to auto."
        )
    if device.type != "cpu" or backend == "eager":
        return Choice("eager", network)
    pixels = _pictures(image_size)
    with torch.inference_mode():
        exact, taken = _timed(network, pixels)
        allowed = _EXACT
        if precision == "bf16":
            in_fp32 = taken
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rounded, taken = _timed(network, pixels)
            allowed = _ROUNDED * _off(rounded, exact)
            if taken > _SLOW * in_fp32:
                warnings.warn(
                    f"bf16 takes {taken / in_fp32:.0f} times as long as fp32 in the image encoder: this processor has, "
                    "it seems, no instructions for it. Set precision to fp32, or to int8.",
                    stacklevel=3,
                )
        seconds = {"eager": taken}
        ready: dict[str, Network] = {}
        passed_over: dict[str, str] = {}
        for name in _READY_AT_ONCE if backend == "auto" else (backend,):
            try:
                run = _PREPARE[name](network, pixels, torch.bfloat16 if precision == "bf16" else torch.float32)
                found, taken = _timed(run, pixels)
                _check(_off(found, exact), allowed)
                seconds[name] = taken
                ready[name] = Slices(run, SLICE)
            except Exception as error:
                # What a back end cannot do, for whatever reason, PyTorch can.
                passed_over[name] = _reason(error)
    if backend != "auto" and not ready:
        raise SettingsError(
            f"The image encoder's back end {backend!r} cannot run this captioner here: {passed_over[backend]} "
            "Set it to auto."
        )
    best = min(ready, key=seconds.__getitem__, default="eager")
    if backend == "auto" and best != "eager" and seconds[best] > seconds["eager"]:
        passed_over[best] = "it is no faster here"
        best = "eager"
    return Choice(best, ready.get(best, network), seconds, passed_over)


def _choose_int8(network: Network, backend: EncoderBackend, device: torch.device, image_size: int) -> Choice:
    """Whole numbers, which no other back end has: they change what comes out, so that speed cannot decide."""
    if device.type != "cpu" or backend not in ("auto", "onednn"):
        told = f"device is {device}" if device.type != "cpu" else f"encoder is {backend}"
        raise SettingsError(
            f"Precision int8 is for CPUs and oneDNN, and {told}: set device to cpu and encoder to auto, "
            "or another precision."
        )
    pixels = _pictures(image_size)
    with torch.inference_mode():
        try:
            run = int8.prepare(network, pixels)
            found, taken = _timed(run, pixels)
            _check(_off(found, network(pixels)), _COARSE)
        except Exception as error:
            raise SettingsError(f"This captioner's image encoder cannot run in int8: {_reason(error)}") from error
    return Choice("onednn", Slices(run, SLICE), {"onednn": taken})


def _reason(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _check(off: float, allowed: float) -> None:
    if off > allowed:
        raise ValueError(f"its results are off by {off:.1e} of their size, and {allowed:.1e} is allowed.")


def _pictures(size: int) -> Tensor:
    """Pictures (SLICE, size, size, 3) uint8, always the same: patches of colour, one plain and the others noisy."""
    chance = torch.Generator().manual_seed(0)
    patches = torch.rand(SLICE, 3, 7, 7, generator=chance)
    pictures = functional.interpolate(patches, (size, size), mode="bilinear").permute(0, 2, 3, 1)
    noise = torch.rand(SLICE, size, size, 3, generator=chance) - 0.5
    strength = torch.arange(SLICE)[:, None, None, None] / SLICE
    return ((pictures + noise * strength).clamp(0, 1) * 255).to(torch.uint8)


def _off(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """How far results are from the exact ones, as a share of their size: the most of any; infinite for no numbers."""
    shares = [0.0]
    for one, two in zip(found, exact, strict=True):
        if one.shape != two.shape:
            raise ValueError(f"it gives {tuple(one.shape)} where PyTorch gives {tuple(two.shape)}.")
        if two.numel():
            share = float((one.float() - two.float()).norm() / two.float().norm().clamp(min=1e-12))
            shares.append(share if math.isfinite(share) else math.inf)
    return max(shares)


def _timed(network: Network, pixels: Tensor) -> tuple[Sequence[Tensor], float]:
    """What `network` gives, and the seconds it takes for an image: this thread's, or of several, by the clock."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    found: Sequence[Tensor] = ()
    taken: list[float] = []
    while len(taken) < _ROUNDS or sum(taken) < _SECONDS:
        begin = clock()
        found = network(pixels)
        taken.append(clock() - begin)
    return found, min(taken) / len(pixels)
