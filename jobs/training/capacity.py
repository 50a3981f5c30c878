"""Reports why training workers cannot be placed on the cluster, and gives up after a long wait."""

import time
from collections.abc import Callable, Sequence

from captioning.errors import UnfinishedError
from jobs.runners.pools import Node
from jobs.runners.stall import NodeLoad, free_resources
from jobs.training.placement import Placement

#: Seconds between two checks, and between two messages.
_CHECK_INTERVAL, _MESSAGE_INTERVAL = 20.0, 300.0
#: Seconds without enough nodes for the workers after which to give up.
_GIVE_UP_AFTER = 1800.0


class CapacityWatch:
    """Watches whether the cluster has capacity for the workers of `placement`.

    `has_pending` tells whether workers have been requested and not placed; `log` gets messages for users.
    """

    def __init__(
        self,
        placement: Placement,
        loads: Callable[[], Sequence[NodeLoad]],
        has_pending: Callable[[], bool],
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._placement = placement
        self._loads, self._has_pending, self._log, self._clock = loads, has_pending, log, clock
        self._last_check = self._last_sufficient = clock()
        self._pending = False
        self._last_message: float | None = None

    def poll(self) -> None:
        """To be called often. Raises `UnfinishedError` if the cluster has long been too small for the workers."""
        now = self._clock()
        if now - self._last_check < _CHECK_INTERVAL:
            return
        self._last_check = now
        loads, count = self._loads(), self._placement.min_workers
        capacity = self._placement.capacity([Node(cpus=load.cpus, gpus=load.gpus) for load in loads])
        what = f"{self._placement.cpus:g} CPU" + (" and a GPU" if self._placement.gpu else "")
        needed = f"{count} worker{'s' if count > 1 else ''} with {what}{' each' if count > 1 else ''}"
        if capacity < count:
            self._handle_shortage(now, f"training needs {needed}, and the cluster has room for {capacity}")
            return
        self._last_sufficient = now
        was_pending, self._pending = self._pending, self._has_pending()
        if not self._pending:
            self._last_message = None
        elif was_pending:  # in two checks, so they are not just being started
            self._report(
                f"Training is waiting for resources: it needs {needed} at once. Free: {free_resources(loads)}. Other "
                "work on the cluster uses the rest. Training continues when that ends, or run the same command again "
                "with a smaller `min_workers`."
            )

    def _handle_shortage(self, now: float, why: str) -> None:
        if now - self._last_sufficient > _GIVE_UP_AFTER:
            raise UnfinishedError(
                f"Training stopped after waiting {_GIVE_UP_AFTER / 60:.0f} minutes for nodes: {why}. Run the same "
                "command again when there are more nodes, or with a smaller `min_workers`; it resumes from the last "
                "saved state."
            )
        self._report(
            f"Waiting for nodes: {why}. To train with fewer, run the same command again with a smaller `min_workers`."
        )

    def _report(self, text: str) -> None:
        if self._last_message is None or self._clock() - self._last_message >= _MESSAGE_INTERVAL:
            self._last_message = self._clock()
            self._log(text)


def has_pending_workers(placement: Placement) -> bool:
    """Whether workers of this size have been requested from Ray and not placed."""
    from ray.util import placement_group_table

    requested = {"CPU": placement.cpus, **({"GPU": 1.0} if placement.gpu else {})}
    return any(
        group["state"] in {"PENDING", "RESCHEDULING"}
        and all(bundle == requested for bundle in group["bundles"].values())
        for group in placement_group_table().values()
    )
