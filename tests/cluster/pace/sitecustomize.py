"""Slows down the workers of a simulated cluster, and records where they work. On the PYTHONPATH of its machines.

PACE_FOLDER names a folder; in it, `shards` gets a line `MACHINE NUMBER MONOTONIC_SECONDS` for every captioned shard,
and `steps` a line `MACHINE RANK WORLD STEP` for every training step. PACE_SECONDS is the least time of a shard or
step. With PACE_IDLE the captioner has one fixed answer, on any device. The machine named `blind` does not see the
others' files.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from tests.patching import patch_on_import


def note(file: str, *facts: object) -> None:
    """Append a line in one write, since many processes write to the file."""
    line = " ".join(map(str, (os.environ.get("PACE_MACHINE", "?"), *facts))) + "\n"
    place = os.open(os.path.join(os.environ["PACE_FOLDER"], file), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        os.write(place, line.encode())
    finally:
        os.close(place)


def pause() -> None:
    time.sleep(float(os.environ.get("PACE_SECONDS", "0")))


def slow_shards(module: Any) -> None:
    call = module.CaptionShard.__call__

    def slowly(self: Any, decoded: Any) -> Any:
        pause()
        result = call(self, decoded)
        note("shards", result.column("shard").to_pylist()[0], time.monotonic())
        return result

    module.CaptionShard.__call__ = slowly


def slow_steps(module: Any) -> None:
    after = module.TrainingRun._after_step

    def slowly(self: Any, *arguments: Any) -> Any:
        pause()
        result = after(self, *arguments)
        note("steps", self.workers.rank, self.workers.world_size, self.progress.step)
        return result

    module.TrainingRun._after_step = slowly


def start_over_soon(module: Any) -> None:
    """A simulated run is too short for a restart to pay off otherwise."""
    module._MIN_GAIN, module._STABLE_SECONDS = 0.0, 5.0


def ask_for_little_work(module: Any) -> None:
    module._MIN_WORK_SECONDS, module._UPDATE_EVERY = 1.0, 1.0


def be_idle(module: Any) -> None:
    if "PACE_IDLE" in os.environ:
        from tests.benchmarks.made_archive import load_idle

        module.LoadCaptioner = load_idle


def see_nothing(module: Any) -> None:
    if os.environ.get("PACE_MACHINE") == "blind":
        module._exists = lambda file: False


CHANGES: dict[str, Callable[[Any], None]] = {
    "jobs.workers.caption_shard": slow_shards,
    "captioning.training.loop": slow_steps,
    "jobs.runners.replan": start_over_soon,
    "jobs.runners.autoscaling": ask_for_little_work,
    "jobs.driving.make_work": be_idle,
    "jobs.runners.shared": see_nothing,
}


if "PACE_FOLDER" in os.environ:
    patch_on_import(CHANGES)
