"""Asks an autoscaling cluster for GPUs that what is left of a run is worth, and lets go of what did not come.

An autoscaler starts machines for tasks that wait for a place: such tasks are put there, which do nothing. Where
one has had its place the machine is there, and `replan` decides about using it. Knows counts and a clock, and
nothing of Ray.
"""

import time
from collections.abc import Callable
from typing import Protocol

from jobs.runners.pools import Pools

#: Seconds of work that a further captioner must find: a machine takes minutes to come, and is paid for.
_WORTH = 600.0
#: Seconds between two looks.
_LOOK_EVERY = 10.0


class Waiting(Protocol):
    """Tasks that wait for a place of a captioner's size."""

    def add(self, count: int) -> None:
        """Put so many more there."""
        ...

    def left(self) -> int:
        """How many wait still."""
        ...

    def cancel(self) -> None:
        """Take those away that wait still."""
        ...


class Growth:
    """What is asked for while these pools work, up to `most` captioners in all (None: nothing)."""

    def __init__(
        self, pools: Pools, most: int | None, waiting: Waiting, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pools = pools
        # Captioners on CPUs share their cores, so that a task beside them waits for nothing.
        self._most = most if most is not None and pools.gpus_per_actor > 0 else 0
        self._waiting = waiting
        self._clock = clock
        self._looked: float | None = None
        self._asked = 0

    def look(self, seconds_left: float) -> int:
        """Ask for what is missing, with so much work left for these pools; how many captioners were asked for now.

        To be called when the captioners have their places: else the tasks would take them.
        """
        now = self._clock()
        if not self._most or (self._looked is not None and now - self._looked < _LOOK_EVERY):
            return 0
        self._looked = now
        worth = min(self._most, int(self._pools.actors * seconds_left / _WORTH)) - self._pools.actors
        if worth <= 0:
            self.let_go()
            return 0
        more = worth - self._asked
        if more > 0:
            self._waiting.add(more)
            self._asked += more
        return max(0, more)

    def let_go(self) -> None:
        """Take back what has not come."""
        self._asked -= self._waiting.left()
        self._waiting.cancel()
