"""The observer of a run on Ray: exports metrics, reports changes of nodes and stalls, and requests nodes.

Connects `metrics`, `node_watch`, `stall` and `autoscaling` with Ray.
"""

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from jobs.runners.autoscaling import CapacityRequests
from jobs.runners.metrics import RunMetrics
from jobs.runners.node_watch import NodeWatch
from jobs.runners.pools import Pools
from jobs.runners.stall import NodeLoad, StallWatch, explain
from jobs.runners.work import ShardResult


class RayObserver:
    """Watches one execution with these pools. A context manager; see `Observer`."""

    def __init__(
        self,
        run: str,
        pools: Pools,
        notify: Callable[[str], None],
        log_event: Callable[..., None],
        max_actors: int | None = None,
    ) -> None:
        self._capacity = CapacityRequests(pools, max_actors, _Placeholders(pools))
        self._metrics = RunMetrics(run)
        self._pools = pools
        self._notify, self._log_event = notify, log_event
        self._stall = StallWatch(lambda: explain(pools, node_loads()), self._stalled)
        self._nodes = NodeWatch(_live_nodes, self._changed)
        self._watches = ExitStack()

    def __enter__(self) -> "RayObserver":
        with ExitStack() as watches:
            watches.enter_context(self._stall)
            watches.enter_context(self._nodes)
            self._watches = watches.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capacity.cancel()
        self._watches.__exit__(kind, error, trace)

    def shard_finished(self, result: ShardResult, *, images: int, shards: int, rate: float | None) -> None:
        """See `Observer`."""
        self._stall.progress()
        self._metrics.add(result)
        self._metrics.set_remaining(images=images, shards=shards, captioners=self._pools.actors, rate=rate)
        more = self._capacity.update(images / rate) if rate else 0
        if more:
            self._notify(f"Requesting room for {more} more captioner{'s' if more > 1 else ''} from the cluster.")
            self._log_event("asked", captioners=more)

    def _stalled(self, text: str) -> None:
        self._notify(text)
        self._log_event("stalled", reason=text)

    def _changed(self, event: str, node: str) -> None:
        lost = event == "node_lost"
        self._notify(f"Node {node} was lost; its shards run on other nodes." if lost else f"Node {node} has joined.")
        self._log_event(event, node=node)


class _Placeholders:
    """See `autoscaling.Placeholders`."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._tasks: list[Any] = []

    def add(self, count: int) -> None:
        import ray

        task = ray.remote(num_cpus=self._pools.cpus_per_actor, num_gpus=self._pools.gpus_per_actor)(_nothing)
        self._tasks += [task.remote() for _ in range(count)]

    def pending(self) -> int:
        return len(self._pending())

    def cancel(self) -> None:
        import ray

        for task in self._pending():
            ray.cancel(task)
        self._tasks.clear()

    def _pending(self) -> list[Any]:
        import ray

        return ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)[1] if self._tasks else []


def _nothing() -> None:
    """The body of a placeholder task."""


def _live_nodes() -> dict[str, str]:
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def node_loads() -> list[NodeLoad]:
    """The cluster's nodes, with the free resources of each as of Ray's last update."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [
        NodeLoad(
            name=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            free_cpus=free.get(node["NodeID"], {}).get("CPU", 0.0),
            free_gpus=free.get(node["NodeID"], {}).get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
