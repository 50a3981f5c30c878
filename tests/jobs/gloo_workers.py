"""Two training workers without Ray, for tests that kill them: `train_worker` in forks of a process that has loaded all.

They write down where they are, so that a kill can be aimed and told of, and take their time with what
is over in a blink, so that one can hit.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Importing timm takes longer than training a few steps, so it is done once for all forks.
import timm  # noqa: F401
import torch
import torch.distributed as dist

from captioning import local_files
from captioning.config import read_settings
from captioning.storage import Location
from captioning.training import history
from captioning.training.best import BestCheckpoint
from captioning.training.loop import TrainingRun
from captioning.training.settings import TrainSettings
from captioning.training.state import StateWriter
from jobs.training.worker import train_worker

WORLD = 2

#: Seconds between writing and renaming a file of a state or best checkpoint, and the minimum duration of a phase.
PAUSE = 0.03
PHASE = 0.1


def work(rank: int, recipe: str, output: str, place: str) -> None:
    """One worker of an attempt; `place` is a folder of the attempt's own."""
    torch.set_num_threads(1)
    # Plotting takes longer than everything else.
    history.draw_curves = lambda records: f"a picture of {len(records)} records".encode()  # type: ignore[attr-defined]
    if rank == 0:
        _tell_phases(Path(place))
        _take_time()
    dist.init_process_group("gloo", init_method=f"file://{place}/rendezvous", rank=rank, world_size=WORLD)
    settings = read_settings(TrainSettings, recipe)
    train_worker({"settings": settings, "output": Location.parse(output), "gpu": False, "folder": "."})
    dist.destroy_process_group()


def _tell_phases(place: Path) -> None:
    """Write the run's current phase, the step that it resumed from, and a log of its phases to `place`."""
    file = os.open(place / "phase", os.O_CREAT | os.O_WRONLY)
    moments = os.open(place / "moments", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def note(step: int, kind: str) -> None:
        os.write(moments, f"{step} {kind}\n".encode())

    def say(run: TrainingRun, phase: str) -> None:
        os.pwrite(file, f"{run.progress.step:>8} {phase:<16}".encode(), 0)

    def first(owner: type, name: str, do: Callable[..., None], last: Callable[..., None] = lambda _: None) -> None:
        then: Callable[..., Any] = getattr(owner, name)

        def method(self: Any, *args: Any, **more: Any) -> Any:
            do(self, *args)
            result = then(self, *args, **more)
            last(self)
            return result

        setattr(owner, name, method)

    def phase(name: str, phase: str) -> None:
        def begin(run: TrainingRun, *_: Any) -> None:
            if phase == "entering" and not (place / "begun").exists():
                (place / "begun").write_text(str(run.progress.step))
            say(run, phase)
            note(run.progress.step, phase)
            time.sleep(PHASE if phase != "step" else 0)

        first(TrainingRun, name, begin, lambda run: say(run, "step"))

    phase("start_stage", "entering")
    phase("validate", "validation")
    phase("_after_step", "step")
    phase("_search", "search")
    first(StateWriter, "_write", lambda _, progress, *__: note(progress["step"], "state"))
    first(BestCheckpoint, "write", lambda _, stage, weights, progress, *__: note(progress.step, "best"))


def _take_time() -> None:
    """Slow down writing states and best checkpoints, and renaming the latter, so that kills can hit them."""
    write, rename = local_files._write_temp, os.rename

    def write_temp(path: str, *args: Any) -> str:
        written = write(path, *args)
        if "/state/step-" in path or "/.best-new/" in path:
            time.sleep(PAUSE)
        return written

    def renamed(*args: Any) -> None:
        rename(*args)
        time.sleep(PAUSE)

    local_files._write_temp = write_temp
    os.rename = renamed  # type: ignore[assignment]


class Attempt:
    """Both workers, started; `place` is a new folder."""

    def __init__(self, recipe: str, output: Path, place: Path) -> None:
        place.mkdir(parents=True)
        self._place = place
        self.started = time.time_ns()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._processes: list[BaseProcess] = [
            context.Process(target=work, args=(rank, recipe, str(output), str(place))) for rank in range(WORLD)
        ]
        for process in self._processes:
            process.start()

    @property
    def phase(self) -> tuple[int, str]:
        """The step the run is at, and what it does."""
        try:
            step, _, phase = (self._place / "phase").read_text().strip().partition(" ")
        except FileNotFoundError:
            return 0, "start"
        return int(step or 0), phase or "start"

    @property
    def begun(self) -> int | None:
        """The step that it went on from, once it has begun."""
        file = self._place / "begun"
        text = file.read_text() if file.exists() else ""
        return int(text) if text else None

    @property
    def moments(self) -> list[tuple[int, str]]:
        """What it has come to so far, in order: a step, and what began after it."""
        lines = (self._place / "moments").read_text().splitlines()
        return [(int(step), kind) for step, kind in map(str.split, lines)]

    def strike(self, when: Callable[[], bool]) -> bool:
        """SIGKILL both as soon as `when` holds; False if they end before."""
        while all(process.is_alive() for process in self._processes):
            if when():
                # Check again while the processes are stopped.
                self._signal(signal.SIGSTOP)
                if when():
                    self._signal(signal.SIGKILL)
                    self.wait()
                    return True
                self._signal(signal.SIGCONT)
            time.sleep(0.002)
        return False

    def wait(self, seconds: float = 1800) -> list[int | None]:
        """Exit codes of both, once they have ended."""
        for process in self._processes:
            process.join(seconds)
        return [process.exitcode for process in self._processes]

    def stop(self) -> None:
        """End whatever still runs."""
        for process in self._processes:
            if process.is_alive():
                process.kill()
                process.join()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)
