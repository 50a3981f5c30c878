"""Which of this machine's cores captioners have to themselves.

A request wakes half a dozen processes for a fraction of a millisecond each, on whatever core comes first. A captioner
that is on it waits each time: on two cores it captions a fifth more with one of them to itself than
with both shared. Knows numbers of cores, nothing of captioners or Ray.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Cores:
    """Who runs where."""

    threads: int
    """Of each captioner's process."""
    captioners: tuple[int, ...] = ()
    """Numbers of the cores that are theirs alone; none where all share all."""
    others: tuple[int, ...] = ()
    """Those of everything else, likewise."""


def share_out(cores: Collection[int], processes: int, threads: int | Literal["auto"], *, own: bool) -> Cores:
    """`cores` shared out among so many captioner processes and everything else, which gets a quarter or more.

    All share all where captioners are not to have their `own`, or more threads are given than that leaves.
    """
    left = len(cores) - max(1, len(cores) // 4) if own else len(cores)
    each = max(1, left // processes) if threads == "auto" else threads
    wanted = processes * each
    if not own or wanted > left:
        return Cores(each)
    ordered = sorted(cores)
    # The first cores are those that other programs are found on.
    return Cores(each, tuple(ordered[-wanted:]), tuple(ordered[:-wanted]))
