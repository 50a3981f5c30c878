"""Says why a run makes no progress: who asks for what, and what is free where.

Knows a clock, a plan and the nodes' resources. That a run which stays so is ended is Ray Data's
part, see `pipeline`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.runners.pools import Pools
from jobs.watch import Watch

#: Seconds without a finished shard until something is said, and until it is said again. A shard may well take as
#: long as the longest before it did, and then some.
_FIRST, _AGAIN, _PATIENCE = 60.0, 300.0, 5.0
#: Nodes that are named.
_NAMED = 8


@dataclass(frozen=True)
class NodeLoad:
    """A machine: what it has, and what of it is free."""

    name: str
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float


class StallWatch(Watch):
    """Looks at the time since the last finished shard."""

    def __init__(
        self,
        explain: Callable[[], str],
        say: Callable[[str], None],
        *,
        first: float = _FIRST,
        again: float = _AGAIN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("stall", min(first / 4, 5.0))
        self._explain, self._say, self._first, self._again, self._clock = explain, say, first, again, clock
        self._longest = 0.0
        self._last = clock()
        self._begun = False
        self._said: float | None = None

    def progress(self) -> None:
        """A shard was finished."""
        now = self._clock()
        if self._begun:  # before the first one, captioners were loaded
            self._longest = max(self._longest, now - self._last)
        self._begun, self._last, self._said = True, now, None

    def look(self) -> None:
        """Say what is the matter, if it is time to."""
        now = self._clock()
        still = now - self._last
        if still < max(self._first, _PATIENCE * self._longest):
            return
        if self._said is not None and now - self._said < self._again:
            return
        self._said = now
        self._say(f"No shard was finished for {still:.0f} s. {self._explain()}")


def explain(pools: Pools, nodes: Sequence[NodeLoad]) -> str:
    """Who asks for what, what is free where, and what that means."""
    gpus = f" and {pools.gpus_per_actor:g} GPU" if pools.gpus_per_actor else ""
    wants = (
        f"{pools.actors} captioner{'s ask' if pools.actors > 1 else ' asks'} for {pools.cpus_per_actor:g} CPU{gpus}"
        f"{' each' if pools.actors > 1 else ''}, a decoding task for {pools.cpus_per_decode:g} CPU."
    )
    return f"{wants} Free: {free_places(nodes)}. {_meaning(pools, nodes)}"


def free_places(nodes: Sequence[NodeLoad]) -> str:
    """What is free of the nodes, those with the most of it first."""
    free = [
        f"{node.name} {node.free_cpus:g} of {node.cpus:g} CPU"
        + (f" and {node.free_gpus:g} of {node.gpus:g} GPU" if node.gpus else "")
        for node in sorted(nodes, key=lambda node: (node.free_gpus, node.free_cpus), reverse=True)
    ]
    more = f"; and {len(free) - _NAMED} more nodes" if len(free) > _NAMED else ""
    return f"{'; '.join(free[:_NAMED]) or 'nothing, there are no nodes'}{more}"


def _meaning(pools: Pools, nodes: Sequence[NodeLoad]) -> str:
    if not any(node.cpus >= pools.cpus_per_decode for node in nodes):
        return "No node is large enough for a decoding task: the run goes on when one joins."
    if not any(node.cpus >= pools.cpus_per_actor and node.gpus >= pools.gpus_per_actor for node in nodes):
        return "No node is large enough for a captioner: the run goes on when one joins."
    # What is asked for is a share of what is there, so these are others' doing.
    captioning = sum(node.gpus - node.free_gpus for node in nodes) if pools.gpus_per_actor else None
    if captioning is not None and captioning < pools.gpus_per_actor:
        return "No captioner has its place yet: they are being started, or wait for CPUs."
    if not any(node.free_cpus >= pools.cpus_per_decode for node in nodes):
        return "Everything is taken: by other jobs of the cluster, or by captioners that load or are at work."
    return "There is room: captioners are loading, a shard takes long, or a store does not answer."
