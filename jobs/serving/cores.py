"""Allocates this machine's cores to captioners and to the rest of the server.

A request wakes half a dozen processes for a fraction of a millisecond each, on any core, and a captioner running
there waits each time: on two cores it captions a fifth more images with one core to itself than with both shared.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CoreAllocation:
    """Threads per captioner, and which cores the parts of the server are pinned to."""

    threads: int
    """Threads of each captioner's process."""
    captioners: tuple[int, ...] = ()
    """Cores dedicated to captioners; empty where everything shares all cores."""
    others: tuple[int, ...] = ()
    """Cores of everything else, likewise."""


def allocate_cores(
    cores: Collection[int], processes: int, threads: int | Literal["auto"], *, dedicated: bool
) -> CoreAllocation:
    """Divide `cores` between the captioner processes and everything else, which gets a quarter or more.

    Everything shares all cores unless `dedicated` is set and the given number of threads fits.
    """
    available = len(cores) - max(1, len(cores) // 4) if dedicated else len(cores)
    each = max(1, available // processes) if threads == "auto" else threads
    needed = processes * each
    if not dedicated or needed > available:
        return CoreAllocation(each)
    ordered = sorted(cores)
    # Other programs tend to run on the first cores.
    return CoreAllocation(each, tuple(ordered[-needed:]), tuple(ordered[:-needed]))
