"""Chooses the runner of a run: Ray, or local processes where starting Ray is not worth it."""

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

#: Up to this many images the start of Ray and its own load (6% of two cores) are noticeable.
MAX_LOCAL_IMAGES = 50_000


@contextmanager
def open_runner(runtime: RuntimeSettings, images: int | None) -> Iterator[Runner]:
    """Open a runner for about this many images (None: many) during the body.

    Raises `SettingsError` if the runner that is set does not support the other settings, and `UnfinishedError` if
    Ray is not available.
    """
    if runs_locally(runtime, images):
        with LocalRunner() as local:
            yield local
    else:
        with ray_session():
            yield RayRunner(runtime.max_actors)


def runs_locally(runtime: RuntimeSettings, images: int | None) -> bool:
    """Whether this many images (None: many) are captioned without Ray. Raises `SettingsError`."""
    on_gpu = runtime.device == "cuda" or runtime.gpus_per_actor not in ("auto", 0)
    if runtime.runner == "local" and on_gpu:
        raise SettingsError(
            "runtime.runner is local, which captions on CPUs, but runtime.device or runtime.gpus_per_actor needs GPUs: "
            "remove one of them."
        )
    if runtime.runner != "auto":
        return runtime.runner == "local"
    if images is None or images > MAX_LOCAL_IMAGES or on_gpu or runtime.decode_tasks != "auto":
        return False
    if os.environ.get("RAY_ADDRESS") or _has_ray():
        return False
    return runtime.device == "cpu" or not has_gpu()


def _has_ray() -> bool:
    """Whether this process is connected to Ray already; does not import it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
