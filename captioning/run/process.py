"""Identifies a process, so that another process can later check whether it is still running.

Uses Linux's /proc; without it no process is reported as dead.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


def machine_id() -> str:
    """The scope in which process ids are unique: the kernel's boot id and the container's PID namespace.

    Host names do not suffice, for containers may share one. Empty if unknown.
    """
    try:
        return f"{_BOOT.read_text().strip()} {os.readlink(_NAMESPACE)}"
    except OSError:
        return ""


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None for one that has ended or is not visible.

    Process ids are reused; the pair of id and start time is unique.
    """
    try:
        # The name, in parentheses, may contain anything; the numbers follow the last parenthesis.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True)
class ProcessId:
    """The identity of a process."""

    machine: str
    pid: int
    started: int | None

    @classmethod
    def current(cls) -> "ProcessId":
        """This process."""
        return cls(machine_id(), os.getpid(), start_time(os.getpid()))

    def alive(self) -> bool | None:
        """Whether it is still running; None if that cannot be determined on this machine."""
        if not self.machine or self.started is None or self.machine != machine_id():
            return None
        return start_time(self.pid) == self.started
