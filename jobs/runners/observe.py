"""What is told about a run on Ray beside its progress: metrics, machines that come and go, and why nothing moves.

Knows Ray's view of the nodes; what is said about it is `stall`'s and `node_watch`'s, and what is counted `metrics`'s.
"""

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from jobs.runners.metrics import RunMetrics
from jobs.runners.node_watch import NodeWatch
from jobs.runners.pools import Pools
from jobs.runners.stall import NodeLoad, StallWatch, explain
from jobs.runners.work import ShardResult


class RayObserver:
    """Watches one execution with these pools. A context manager; see `Observer`."""

    def __init__(self, run: str, pools: Pools, say: Callable[[str], None], note: Callable[..., None]) -> None:
        self._metrics = RunMetrics(run)
        self._pools = pools
        self._say, self._note = say, note
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
        self._watches.__exit__(kind, error, trace)

    def finished(self, result: ShardResult, *, images: int, shards: int, rate: float | None) -> None:
        """See `Observer`."""
        self._stall.progress()
        self._metrics.add(result)
        self._metrics.stand(images=images, shards=shards, captioners=self._pools.actors, rate=rate)

    def _stalled(self, text: str) -> None:
        self._say(text)
        self._note("stalled", reason=text)

    def _changed(self, event: str, node: str) -> None:
        lost = event == "node_lost"
        self._say(f"The node {node} is lost; its shards run elsewhere." if lost else f"The node {node} has joined.")
        self._note(event, node=node)


def _live_nodes() -> dict[str, str]:
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def node_loads() -> list[NodeLoad]:
    """The cluster's machines, with what is free of each as Ray last heard."""
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
