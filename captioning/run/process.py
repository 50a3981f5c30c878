"""Which process this is, in words that a process elsewhere or later can check: host, boot, pid, start.

Knows Linux's /proc; where there is none, nothing is said to be dead.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


def machine() -> str:
    """Where a process id means the same process: this boot of this kernel, and this container's view of it.

    Host names do not tell: containers may share one. Empty where it cannot be said.
    """
    try:
        return f"{_BOOT.read_text().strip()} {os.readlink(_NAMESPACE)}"
    except OSError:
        return ""


def start_of(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None for one that is gone, or not to be seen.

    A process id is given again, the pair of both is not.
    """
    try:
        # The name, in parentheses, may hold anything; the numbers follow the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True)
class ProcessId:
    """A process, told apart from every other one."""

    machine: str
    pid: int
    started: int | None

    @classmethod
    def mine(cls) -> "ProcessId":
        """This process."""
        return cls(machine(), os.getpid(), start_of(os.getpid()))

    def alive(self) -> bool | None:
        """Whether it still runs; None when that cannot be seen from here."""
        if not self.machine or self.started is None or self.machine != machine():
            return None
        return start_of(self.pid) == self.started
