"""Runs a program and measures it from outside: seconds from start to exit, and memory."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioning.errors import UnfinishedError

#: Seconds between two memory samples, and the least multiple of a sample's own duration: to count shared pages, the
#: kernel walks through all pages of a process, 35 ms a GiB, during which the process gets no new one.
_SAMPLE_EVERY, _SAMPLE_REST = 0.5, 100
#: A program that takes longer is taken to hang.
_TIMEOUT = 4 * 3600.0


@dataclass(frozen=True)
class Measured:
    """The time and memory that a program took."""

    seconds: float
    #: Peak memory of the program and all its children, shared pages counted once; None without /proc.
    peak_bytes: int | None
    #: By role: the most that one process of the role had resident at once, without shared memory such as Ray's object
    #: store. Unlike the shares of `peak_bytes` it does not depend on which other processes there are.
    peak_by_role: Mapping[str, int]
    #: The same as time went on: seconds since the start, and by role the most that one process of it held just then.
    memory: Sequence[tuple[float, Mapping[str, int]]]


def measure(
    command: Sequence[str],
    *,
    environment: dict[str, str],
    log: Path,
    folder: Path | None = None,
    role_of: Callable[[str], str] | None = None,
) -> Measured:
    """Run `command` in `folder` to its end, with its output in `log`. Raises `UnfinishedError` when it fails.

    `role_of` maps a child process's command line to its role; the first process is the `driver`.
    """
    with log.open("wb") as words:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=words, stderr=subprocess.STDOUT, env=environment, start_new_session=True, cwd=folder
        )
        memory = _Memory(process.pid, role_of)
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
            memory.stop()
    if code:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise UnfinishedError(f"{' '.join(command)} ended with code {code}; its last words (all are in {log}):\n{last}")
    return Measured(seconds, memory.peak or None, memory.by_role, memory.history)


class _Memory:
    """Samples the memory of a process and its descendants until stopped."""

    def __init__(self, root: int, role_of: Callable[[str], str] | None) -> None:
        self.peak = 0
        self.by_role: dict[str, int] = {}
        self.history: list[tuple[float, dict[str, int]]] = []
        self._root, self._role_of = root, role_of
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        begin = time.perf_counter()
        rested = begin
        while not self._ended.wait(_SAMPLE_EVERY):
            looked = time.perf_counter()
            if self._role_of is not None:
                self._look_by_role(looked - begin, self._role_of)
            if looked >= rested:
                looked = time.perf_counter()
                self.peak = max(self.peak, sum(map(_memory_of, family(self._root))))
                ended = time.perf_counter()
                rested = ended + _SAMPLE_REST * (ended - looked)

    def _look_by_role(self, second: float, role_of: Callable[[str], str]) -> None:
        now: dict[str, int] = {}
        for process in family(self._root):
            command = _command_line(process)
            # A process that has just ended has no command line.
            role = "driver" if process == self._root else command and role_of(command)
            if role:
                now[role] = max(_own_memory_of(process), now.get(role, 0))
        self.by_role = {role: max(now.get(role, 0), self.by_role.get(role, 0)) for role in now | self.by_role}
        self.history.append((second, now))


def family(root: int) -> set[int]:
    """The process `root` and its descendants."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in parentheses, may contain anything; state and parent follow it.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it has just ended
    family, new = set(), {root}
    while new:
        family |= new
        new = {child for child, parent in parents.items() if parent in family} - family
    return family


def _memory_of(process: int) -> int:
    """A process's memory in bytes, a page shared by n processes counted as 1/n (PSS)."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def _own_memory_of(process: int) -> int:
    """A process's resident bytes without shared memory."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssFile:")))


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
