"""When a run starts its pools anew because the cluster has grown since they were planned.

Ray Data's pools keep the sizes that they were started with: a node that comes later is given what a
lost one leaves waiting, and nothing more. To start anew loads every captioner again and does again
what was half done, so it must bring more than it costs. Knows plans and a clock, and nothing of Ray.
"""

import time
from collections.abc import Callable

from jobs.runners.pools import Pools

#: Seconds between two looks at the cluster; a cluster that still grows is waited for, but not for ever.
_LOOK_EVERY = 5.0
_STEADY = 20.0
_STILL_GROWING = 300.0
#: What starting anew must save, as a multiple of what it costs.
_WORTH = 2.0


class Replan:
    """Looks after each finished shard whether another plan would be worth starting over for."""

    def __init__(
        self,
        plan: Callable[[int], Pools],
        pools: Pools,
        shards: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pools` are about to be started for `shards` shards; `plan` makes one for what is left, as things are."""
        self._plan = plan
        self._pools = pools
        self._shards = shards
        self._clock = clock
        self._started = self._looked = clock()
        #: When the first shard was done: until then captioners were loaded.
        self._first: float | None = None
        self._growing_since: float | None = None
        self._candidate: tuple[int, float] | None = None

    def after(self, left: int) -> Pools | None:
        """The plan to start over with when `left` shards are left, or None to go on."""
        now = self._clock()
        if self._first is None:
            self._first = now
        if now - self._looked < _LOOK_EVERY:
            return None
        self._looked = now
        plan = self._plan(left) if left else self._pools
        if plan.actors <= self._pools.actors or not self._pays(plan, left, now):
            self._growing_since = self._candidate = None
            return None
        if self._growing_since is None:
            self._growing_since = now
        if self._candidate is None or self._candidate[0] != plan.actors:
            self._candidate = plan.actors, now
        steady = now - self._candidate[1] >= _STEADY or now - self._growing_since >= _STILL_GROWING
        return plan if steady else None

    def _pays(self, plan: Pools, left: int, now: float) -> bool:
        """Whether what is left would be done so much sooner, by what was seen of this run."""
        assert self._first is not None, "a shard has been done"
        done = self._shards - left
        remaining = left * (now - self._first) / max(1, done)
        saved = remaining * (1 - self._pools.actors / plan.actors)
        return saved > _WORTH * (self._first - self._started)
