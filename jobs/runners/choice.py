"""Where a run's shards are captioned: on Ray, or in processes of this machine where Ray is not worth its start.

Knows when which; how is `ray_runner`'s and `local`'s.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from captioning.errors import SettingsError
from jobs.caption_settings import RuntimeSettings
from jobs.gpus import has_gpu
from jobs.ray_session import ray_session
from jobs.runners.local import LocalRunner
from jobs.runners.ray_runner import RayRunner
from jobs.runners.work import Runner

#: Up to so many images the start of a Ray and what it takes beside the captioners (6% of two cores) are noticed.
FEW_IMAGES = 50_000


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
