"""Runs a program and measures it from outside: seconds from start to exit, and memory. Knows not what it does."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captioning.errors import UnfinishedError

_SAMPLE_EVERY = 0.5
#: A program that takes longer hangs.
_TIMEOUT = 4 * 3600.0


@dataclass(frozen=True)
class Measured:
    """What a program took."""

    seconds: float
    #: The most that it and all its children held at once, shared pages counted once; None where there is no /proc.
    peak_bytes: int | None


def measure(command: Sequence[str], *, environment: dict[str, str], log: Path) -> Measured:
    """Run `command` to its end, its words going to `log`. Raises `UnfinishedError` when it fails."""
    with log.open("wb") as words:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=words, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        memory = _Memory(process.pid)
        try:
            code = process.wait(_TIMEOUT)
            seconds = time.perf_counter() - begin
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise UnfinishedError(f"{' '.join(command)} hangs: stopped after {_TIMEOUT:.0f} s.") from error
            raise
        finally:
            peak = memory.stop()
    if code:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise UnfinishedError(f"{' '.join(command)} ended with code {code}; its last words (all are in {log}):\n{last}")
    return Measured(seconds, peak)


class _Memory:
    """Watches the memory of a process and its descendants until told to stop."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int | None:
        self._ended.set()
        self._thread.join()
        return self._peak or None

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_EVERY):
            self._peak = max(self._peak, sum(_memory_of(process) for process in family(self._root)))


def family(root: int) -> set[int]:
    """The process `root` and its descendants."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in brackets, may hold anything; state and parent come after it.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it has just ended
    family, new = set(), {root}
    while new:
        family |= new
        new = {child for child, parent in parents.items() if parent in family} - family
    return family


def _memory_of(process: int) -> int:
    """Bytes of a process, a page that n processes share counted as 1/n (PSS)."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
