"""Reports why a run makes no progress: which resources it requests, and which are free on each node.

Ending a run that stays stalled is left to Ray Data, see `pipeline`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.runners.pools import Pools
from jobs.watch import Watch

#: Seconds without a finished shard until the first report, and between reports.
_FIRST, _REPEAT = 60.0, 300.0
#: A shard may take this many times as long as the longest one so far before it counts as a stall.
_TOLERANCE = 5.0
#: The most nodes in a report.
_MAX_NAMED = 8


@dataclass(frozen=True)
class NodeLoad:
    """The total and free resources of one node."""

    name: str
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float


class StallWatch(Watch):
    """Reports when the last finished shard is long ago."""

    def __init__(
        self,
        explain: Callable[[], str],
        notify: Callable[[str], None],
        *,
        first: float = _FIRST,
        repeat: float = _REPEAT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("stall", min(first / 4, 5.0))
        self._explain, self._notify, self._clock = explain, notify, clock
        self._first, self._repeat = first, repeat
        self._longest = 0.0
        self._last = clock()
        self._begun = False
        self._reported: float | None = None

    def progress(self) -> None:
        """Record a finished shard."""
        now = self._clock()
        if self._begun:  # the time before the first one includes loading captioners
            self._longest = max(self._longest, now - self._last)
        self._begun, self._last, self._reported = True, now, None

    def look(self) -> None:
        """Report a stall, if it is time to."""
        now = self._clock()
        seconds = now - self._last
        if seconds < max(self._first, _TOLERANCE * self._longest):
            return
        if self._reported is not None and now - self._reported < self._repeat:
            return
        self._reported = now
        self._notify(f"No shard has finished for {seconds:.0f} s. {self._explain()}")


def explain(pools: Pools, nodes: Sequence[NodeLoad]) -> str:
    """What the pools request, what is free on each node, and what that means."""
    gpus = f" and {pools.gpus_per_actor:g} GPU" if pools.gpus_per_actor else ""
    wants = (
        f"{pools.actors} captioner{'s request' if pools.actors > 1 else ' requests'} {pools.cpus_per_actor:g} CPU{gpus}"
        f"{' each' if pools.actors > 1 else ''}, a decoding task {pools.cpus_per_decode:g} CPU."
    )
    return f"{wants} Free: {free_resources(nodes)}. {_diagnosis(pools, nodes)}"


def free_resources(nodes: Sequence[NodeLoad]) -> str:
    """The free resources of the nodes, those with the most first."""
    free = [
        f"{node.name} {node.free_cpus:g} of {node.cpus:g} CPU"
        + (f" and {node.free_gpus:g} of {node.gpus:g} GPU" if node.gpus else "")
        for node in sorted(nodes, key=lambda node: (node.free_gpus, node.free_cpus), reverse=True)
    ]
    more = f"; and {len(free) - _MAX_NAMED} more nodes" if len(free) > _MAX_NAMED else ""
    return f"{'; '.join(free[:_MAX_NAMED]) or 'nothing, there are no nodes'}{more}"


def _diagnosis(pools: Pools, nodes: Sequence[NodeLoad]) -> str:
    if not any(node.cpus >= pools.cpus_per_decode for node in nodes):
        return "No node is large enough for a decoding task: the run continues when one joins."
    if not any(node.cpus >= pools.cpus_per_actor and node.gpus >= pools.gpus_per_actor for node in nodes):
        return "No node is large enough for a captioner: the run continues when one joins."
    # The pools request only a part of the resources, so other jobs take the rest.
    gpus_in_use = sum(node.gpus - node.free_gpus for node in nodes) if pools.gpus_per_actor else None
    if gpus_in_use is not None and gpus_in_use < pools.gpus_per_actor:
        return "No captioner has been placed yet: they are starting, or waiting for CPUs."
    if not any(node.free_cpus >= pools.cpus_per_decode for node in nodes):
        return "All CPUs are in use: by other jobs on the cluster, or by captioners that are loading or running."
    return "Resources are free: captioners are loading, a shard takes long, or storage does not respond."
