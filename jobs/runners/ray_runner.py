"""The runner on Ray: captions shards on the cluster that this process is connected to, with `pipeline`."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jobs.runners.pipeline import caption_shards, cluster_nodes
from jobs.runners.pools import Node, Pools
from jobs.runners.work import Observer, ShardResult, Work


class RayRunner:
    """Runs on the connected Ray cluster, which is asked to scale up to `max_actors` captioners."""

    def __init__(self, max_actors: int | None = None) -> None:
        self._max_actors = max_actors

    def nodes(self) -> list[Node]:
        """The cluster's nodes."""
        return cluster_nodes()

    def max_workers(self, shards: int, images: int) -> int:  # noqa: ARG002
        """One per shard at most."""
        return shards

    def require_shared(self, file: Path) -> None:
        """Check every node."""
        from jobs.runners.shared import require_shared

        require_shared(file)

    def observe(
        self, run: str, pools: Pools, notify: Callable[[str], None], log_event: Callable[..., None]
    ) -> AbstractContextManager[Observer | None]:
        """Export metrics, request nodes, and report when nodes join or leave, or the run stalls."""
        from jobs.runners.observe import RayObserver

        return RayObserver(run, pools, notify, log_event, self._max_actors)

    def caption_shards(self, work: Work, pools: Pools, shards: Sequence[int]) -> Generator[ShardResult, None, None]:
        """See `Runner`."""
        return caption_shards(work, pools, shards)

    def call(self, function: Callable[..., Any], *arguments: Any, pools: Pools) -> Any:
        """See `Runner`."""
        import ray

        task = ray.remote(num_cpus=pools.cpus_per_actor, num_gpus=pools.gpus_per_actor or None, max_retries=1)
        return ray.get(task(function).remote(*arguments))
