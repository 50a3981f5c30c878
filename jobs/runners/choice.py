"""Where a run's shards are captioned: on Ray, or in processes of this machine where Ray is not worth its start.

Knows when which; how is `pipeline`'s and `local`'s.
"""

import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from captioning.errors import SettingsError
from jobs.caption_settings import RuntimeSettings
from jobs.gpus import has_gpu
from jobs.ray_session import ray_session
from jobs.runners.local import LocalRunner
from jobs.runners.pipeline import caption_shards, cluster_nodes
from jobs.runners.pools import Node, Pools
from jobs.runners.work import Observer, Runner, ShardResult, Work

#: Up to so many images the start of a Ray and what it takes beside the captioners (6% of two cores) are noticed.
FEW_IMAGES = 50_000


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


@contextmanager
def open_runner(runtime: RuntimeSettings, images: int | None) -> Iterator[Runner]:
    """A runner for about so many images (None: many), for as long as the body takes.

    Raises `SettingsError` where the settings name one that cannot do what they ask for, and
    `UnfinishedError` where no Ray can be had.
    """
    if stays_here(runtime, images):
        with LocalRunner() as local:
            yield local
    else:
        with ray_session():
            yield RayRunner(runtime.max_actors)


def stays_here(runtime: RuntimeSettings, images: int | None) -> bool:
    """Whether so many images (None: many) are captioned without Ray. Raises `SettingsError`."""
    on_gpu = runtime.device == "cuda" or runtime.gpus_per_actor not in ("auto", 0)
    if runtime.runner == "local" and on_gpu:
        raise SettingsError(
            "runtime.runner is local, which captions on CPUs, but runtime.device or runtime.gpus_per_actor wants GPUs: "
            "leave one of the two out."
        )
    if runtime.runner != "auto":
        return runtime.runner == "local"
    if images is None or images > FEW_IMAGES or on_gpu or runtime.decode_tasks != "auto":
        return False
    if os.environ.get("RAY_ADDRESS") or _has_ray():
        return False
    return runtime.device == "cpu" or not has_gpu()


def _has_ray() -> bool:
    """Whether this process is connected to a Ray already; without importing it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
