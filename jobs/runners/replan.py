"""Decides when a run restarts its pools because the cluster has grown since they were planned.

Ray Data's pools keep the sizes that they were started with: a node that joins later only gets work that a lost
node left pending. A restart loads every captioner again and repeats unfinished shards, so it must save more than
it costs.
"""

import time
from collections.abc import Callable

from jobs.runners.pools import Pools

#: Seconds between two checks of the cluster.
_CHECK_EVERY = 5.0
#: Seconds without a change after which the cluster counts as stable, and the most seconds to wait for that.
_STABLE_SECONDS = 20.0
_MAX_WAIT_SECONDS = 300.0
#: The time that a restart must save, as a multiple of its cost.
_MIN_GAIN = 2.0


class Replan:
    """Checks after each finished shard whether restarting with another plan is worthwhile."""

    def __init__(
        self,
        plan: Callable[[int], Pools],
        pools: Pools,
        shards: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pools` are about to be started for `shards` shards; `plan` plans pools for a number of remaining shards."""
        self._plan = plan
        self._pools = pools
        self._shards = shards
        self._clock = clock
        self._started = self._checked = clock()
        #: When the first shard was finished: until then captioners were being loaded.
        self._first: float | None = None
        self._growing_since: float | None = None
        self._candidate: tuple[int, float] | None = None

    def after(self, left: int) -> Pools | None:
        """The plan to restart with when `left` shards are left, or None to continue."""
        now = self._clock()
        if self._first is None:
            self._first = now
        if now - self._checked < _CHECK_EVERY:
            return None
        self._checked = now
        plan = self._plan(left) if left else self._pools
        if plan.actors <= self._pools.actors or not self._is_worthwhile(plan, left, now):
            self._growing_since = self._candidate = None
            return None
        if self._growing_since is None:
            self._growing_since = now
        if self._candidate is None or self._candidate[0] != plan.actors:
            self._candidate = plan.actors, now
        stable = now - self._candidate[1] >= _STABLE_SECONDS or now - self._growing_since >= _MAX_WAIT_SECONDS
        return plan if stable else None

    def _is_worthwhile(self, plan: Pools, left: int, now: float) -> bool:
        """Whether the plan would save enough time, extrapolated from the run so far."""
        assert self._first is not None, "a shard has been finished"
        done = self._shards - left
        remaining = left * (now - self._first) / max(1, done)
        saved = remaining * (1 - self._pools.actors / plan.actors)
        return saved > _MIN_GAIN * (self._first - self._started)
