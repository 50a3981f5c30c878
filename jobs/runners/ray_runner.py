"""A run's shards captioned on the Ray that this process is connected to. The work itself is `pipeline`'s."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jobs.runners.pipeline import caption_shards, cluster_nodes
from jobs.runners.pools import Node, Pools
from jobs.runners.work import Observer, ShardResult, Work


class RayRunner:
    """The Ray that this process is connected to; asked to grow for `max_actors` captioners."""

    def __init__(self, max_actors: int | None = None) -> None:
        self._max_actors = max_actors

    def nodes(self) -> list[Node]:
        """Its machines."""
        return cluster_nodes()

    def most_workers(self, shards: int, images: int) -> int:  # noqa: ARG002
        """Any shard can keep a captioner busy."""
        return shards

    def require_shared(self, file: Path) -> None:
        """Ask every node."""
        from jobs.runners.shared import require_shared

        require_shared(file)

    def observe(
        self, run: str, pools: Pools, say: Callable[[str], None], note: Callable[..., None]
    ) -> AbstractContextManager[Observer | None]:
        """Ray's metrics, machines that are asked for, and a line when one comes or goes, or nothing moves."""
        from jobs.runners.observe import RayObserver

        return RayObserver(run, pools, say, note, self._max_actors)

    def caption_shards(self, work: Work, pools: Pools, shards: Sequence[int]) -> Generator[ShardResult, None, None]:
        """See `Runner`."""
        return caption_shards(work, pools, shards)

    def call(self, function: Callable[..., Any], *arguments: Any, pools: Pools) -> Any:
        """See `Runner`."""
        import ray

        task = ray.remote(num_cpus=pools.cpus_per_actor, num_gpus=pools.gpus_per_actor or None, max_retries=1)
        return ray.get(task(function).remote(*arguments))
