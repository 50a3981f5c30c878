"""Says why a training's workers wait for their places, and ends the wait when it has been long.

Knows a plan, what the nodes have and what of it is free, and a clock; of Ray only how to ask it for those.
"""

import time
from collections.abc import Callable, Sequence

from captioning.errors import UnfinishedError
from jobs.runners.pools import Node
from jobs.runners.stall import NodeLoad, free_resources
from jobs.training.placement import Placement

#: Seconds between two looks, and until what was said is said again.
_LOOK_EVERY, _AGAIN = 20.0, 300.0
#: Seconds without nodes that have room for the workers, then it is given up.
_WITHOUT_ROOM = 1800.0


class RoomWatch:
    """Whether the workers of `placement` have room. `waits` tells whether they are asked for and have no place yet."""

    def __init__(
        self,
        placement: Placement,
        loads: Callable[[], Sequence[NodeLoad]],
        waits: Callable[[], bool],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._placement = placement
        self._loads, self._waits, self._say, self._clock = loads, waits, say, clock
        self._looked = self._had_room = clock()
        self._waiting = False
        self._said: float | None = None

    def look(self) -> None:
        """To be called often. Raises `UnfinishedError` when no nodes have had room for the workers for long."""
        now = self._clock()
        if now - self._looked < _LOOK_EVERY:
            return
        self._looked = now
        loads, least = self._loads(), self._placement.least
        room = self._placement.room([Node(cpus=load.cpus, gpus=load.gpus) for load in loads])
        what = f"{self._placement.cpus:g} CPU" + (" and a GPU" if self._placement.gpu else "")
        needed = f"{least} worker{'s' if least > 1 else ''} with {what}{' each' if least > 1 else ''}"
        if room < least:
            self._no_nodes(now, f"{needed} must fit, and the cluster has room for {room}")
            return
        self._had_room = now
        waited, self._waiting = self._waiting, self._waits()
        if not self._waiting:
            self._said = None
        elif waited:  # twice in a row: they are not just being started
            self._tell(
                f"Training waits for its places: {needed} must be free at once. Free: {free_resources(loads)}. Other "
                "work of the cluster holds the rest; it goes on when that ends, or with a smaller `min_workers`."
            )

    def _no_nodes(self, now: float, why: str) -> None:
        if now - self._had_room > _WITHOUT_ROOM:
            raise UnfinishedError(
                f"Training stopped: {why}, for {_WITHOUT_ROOM / 60:.0f} minutes. Give the same command again when "
                "there are more nodes, or with a smaller `min_workers`; it goes on from the last saved state."
            )
        self._tell(f"Waiting for nodes: {why}. A smaller `min_workers` lets it go on with fewer.")

    def _tell(self, text: str) -> None:
        if self._said is None or self._clock() - self._said >= _AGAIN:
            self._said = self._clock()
            self._say(text)


def waits_for_places(placement: Placement) -> bool:
    """Whether Ray has been asked for workers of this size and has not placed them."""
    from ray.util import placement_group_table

    asked = {"CPU": placement.cpus, **({"GPU": 1.0} if placement.gpu else {})}
    return any(
        group["state"] in {"PENDING", "RESCHEDULING"} and all(bundle == asked for bundle in group["bundles"].values())
        for group in placement_group_table().values()
    )
