"""The GPUs of this machine and how busy they are, as its driver reports them.

Asks `nvidia-smi`, which comes with every driver; where there is none, there are no GPUs. Imports neither PyTorch
nor Ray.
"""

import os
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

_FIELDS = ("index", "name", "driver_version", "memory.total", "memory.used", "utilization.gpu")
#: Time limit of nvidia-smi, and the interval between two polls, in seconds.
_ANSWER_SECONDS = 20.0
_WATCH_EVERY = 3.0
#: More GPUs than this are shown as one line.
_SHOWN = 8


@dataclass(frozen=True)
class Gpu:
    """A GPU: memory in MiB, utilisation `busy` in percent (None where the driver does not report it)."""

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
    """nvidia-smi is there but failed; the message is its output."""


def has_gpu() -> bool:
    """Whether there is a visible GPU that a captioner would use; without importing PyTorch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return False
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or any(Path("/dev").glob("nvidia[0-9]*"))


def read_gpus() -> list[Gpu]:
    """The GPUs of this machine, including those hidden by CUDA_VISIBLE_DEVICES. Raises `GpuDriverError`."""
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
    """Parse a line of nvidia-smi's CSV; the name may contain commas."""
    index, *name, driver, memory, used, busy = (part.strip() for part in line.split(","))
    return Gpu(int(index), ", ".join(name), driver, _number(memory) or 0, _number(used) or 0, _number(busy))


class GpuMonitor:
    """Polls the utilisation of this machine's GPUs every few seconds, between `start` and `stop`."""

    def __init__(self) -> None:
        self._gpus: list[Gpu] = []
        self._ended = threading.Event()

    def start(self) -> None:
        """Start polling, where there is a visible GPU."""
        if shutil.which("nvidia-smi") is not None and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
            threading.Thread(target=self._watch, name="gpus", daemon=True).start()

    def stop(self) -> None:
        """Stop polling."""
        self._ended.set()

    def lines(self) -> list[tuple[str, str]]:
        """The latest reading as (name, text) rows."""
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
