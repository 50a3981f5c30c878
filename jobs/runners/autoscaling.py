"""Requests GPUs from an autoscaling cluster, as many as the remaining work of a run is worth.

An autoscaler starts machines for pending tasks, so this submits placeholder tasks, which do nothing. Once one of
them has been scheduled its machine is there, and `replan` decides whether to use it.
"""

import time
from collections.abc import Callable
from typing import Protocol

from jobs.runners.pools import Pools

#: Seconds of work that each further captioner must have: a machine takes minutes to start, and costs money.
_MIN_WORK_SECONDS = 600.0
#: Seconds between two updates.
_UPDATE_EVERY = 10.0


class Placeholders(Protocol):
    """Tasks that request the resources of a captioner."""

    def add(self, count: int) -> None:
        """Submit further tasks."""
        ...

    def pending(self) -> int:
        """The number of tasks that are not scheduled yet."""
        ...

    def cancel(self) -> None:
        """Cancel the tasks that are not scheduled yet."""
        ...


class CapacityRequests:
    """Requests capacity beside these pools, up to `max_actors` captioners in all (None: requests nothing)."""

    def __init__(
        self,
        pools: Pools,
        max_actors: int | None,
        placeholders: Placeholders,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pools = pools
        # Captioners on CPUs request less than the cores they use, so a task beside them would never be pending.
        self._max_actors = max_actors if max_actors is not None and pools.gpus_per_actor > 0 else 0
        self._placeholders = placeholders
        self._clock = clock
        self._updated: float | None = None
        self._requested = 0

    def update(self, seconds_left: float) -> int:
        """Adjust the requests to the seconds of work left for these pools; the number of captioners newly requested.

        Call this only once the captioners are scheduled: otherwise placeholders would take their resources.
        """
        now = self._clock()
        if not self._max_actors or (self._updated is not None and now - self._updated < _UPDATE_EVERY):
            return 0
        self._updated = now
        wanted = min(self._max_actors, int(self._pools.actors * seconds_left / _MIN_WORK_SECONDS)) - self._pools.actors
        if wanted <= 0:
            self.cancel()
            return 0
        more = wanted - self._requested
        if more > 0:
            self._placeholders.add(more)
            self._requested += more
        return max(0, more)

    def cancel(self) -> None:
        """Cancel the requests that are not fulfilled yet."""
        self._requested -= self._placeholders.pending()
        self._placeholders.cancel()
