"""The GPUs of this machine as its driver tells of them: what they are, and how busy they are.

Asks `nvidia-smi`, which comes with every driver; where there is none, there are no GPUs. Knows
nothing of PyTorch, Ray, or GPUs of other machines.
"""

import os
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

_FIELDS = ("index", "name", "driver_version", "memory.total", "memory.used", "utilization.gpu")
#: Seconds that the driver may take to answer, and between two looks at how busy GPUs are.
_ANSWER_SECONDS = 20.0
_WATCH_EVERY = 3.0
#: More GPUs than this are shown as one line.
_SHOWN = 8


@dataclass(frozen=True)
class Gpu:
    """A GPU: memory in MiB, `busy` in percent (None where the driver does not say)."""

    index: int
    name: str
    driver: str
    memory: int
    memory_used: int
    busy: int | None

    def __str__(self) -> str:
        busy = "" if self.busy is None else f"{self.busy}% busy, "
        return f"{busy}{self.memory_used / 1024:.1f} of {self.memory / 1024:.0f} GiB"


class GpuDriverError(Exception):
    """There is a driver's program, and it fails: its message."""


def has_gpu() -> bool:
    """Whether there is a GPU that a captioner would be put on; without importing PyTorch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return False
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or any(Path("/dev").glob("nvidia[0-9]*"))


def read_gpus() -> list[Gpu]:
    """The GPUs of this machine, those hidden by CUDA_VISIBLE_DEVICES too. Raises `GpuDriverError`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GpuDriverError(str(error)) from error
    if done.returncode:
        raise GpuDriverError(" ".join((done.stdout + done.stderr).split()))
    return [parse_gpu(line) for line in done.stdout.splitlines() if line.strip()]


def parse_gpu(line: str) -> Gpu:
    """A line of the driver's answer; the name may hold commas."""
    index, *name, driver, memory, used, busy = (part.strip() for part in line.split(","))
    return Gpu(int(index), ", ".join(name), driver, _number(memory) or 0, _number(used) or 0, _number(busy))


class GpuWatch:
    """Looks every few seconds at how busy this machine's GPUs are, between `start` and `stop`."""

    def __init__(self) -> None:
        self._gpus: list[Gpu] = []
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to look, where there is a GPU to look at."""
        if shutil.which("nvidia-smi") is not None and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
            threading.Thread(target=self._watch, name="gpus", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def lines(self) -> list[tuple[str, str]]:
        """What was seen last, a name and a text each."""
        gpus = self._gpus
        if len(gpus) <= _SHOWN:
            return [(f"GPU {gpu.index}", str(gpu)) for gpu in gpus]
        busy = [gpu.busy for gpu in gpus if gpu.busy is not None]
        mean = f"{sum(busy) / len(busy):.0f}% busy on average, " if busy else ""
        used, memory = (sum(sizes) / 1024 for sizes in zip(*((g.memory_used, g.memory) for g in gpus), strict=True))
        return [("GPUs", f"{len(gpus)}: {mean}{used:.0f} of {memory:.0f} GiB")]

    def _watch(self) -> None:
        while not self._ended.is_set():
            try:
                self._gpus = read_gpus()
            except (GpuDriverError, ValueError):
                return
            if not self._gpus:
                return
            self._ended.wait(_WATCH_EVERY)


def _number(text: str) -> int | None:
    try:
        return round(float(text))
    except ValueError:
        return None
