"""Two training workers without Ray, for tests that kill them: `train_worker` in forks of a process that has loaded all.

They write down where they are, so that a kill can be aimed and told of.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from captioning.config import read_settings
from captioning.storage import Location
from captioning.training.loop import TrainingRun
from captioning.training.settings import TrainSettings
from jobs.train import train_worker

WORLD = 2


def work(rank: int, recipe: str, output: str, place: str) -> None:
    """One worker of an attempt; `place` is a folder of the attempt's own."""
    torch.set_num_threads(1)
    if rank == 0:
        _tell_phases(Path(place))
    dist.init_process_group("gloo", init_method=f"file://{place}/rendezvous", rank=rank, world_size=WORLD)
    settings = read_settings(TrainSettings, recipe)
    train_worker({"settings": settings, "output": Location.parse(output), "gpu": False})
    dist.destroy_process_group()


def _tell_phases(place: Path) -> None:
    """Write to `place` what the run is at, and from which step it went on."""
    file = os.open(place / "phase", os.O_CREAT | os.O_WRONLY)

    def say(run: TrainingRun, phase: str) -> None:
        os.pwrite(file, f"{run.progress.step:>8} {phase:<16}".encode(), 0)

    def told(name: str, phase: str) -> None:
        then: Callable[..., Any] = getattr(TrainingRun, name)

        def method(run: TrainingRun, *args: Any, **more: Any) -> Any:
            say(run, phase)
            if name == "enter" and not (place / "begun").exists():
                (place / "begun").write_text(str(run.progress.step))
            result = then(run, *args, **more)
            say(run, "step")
            return result

        setattr(TrainingRun, name, method)

    for name, phase in (
        ("enter", "entering"),
        ("validate", "validation"),
        ("_after_step", "step"),
        ("_search", "search"),
    ):
        told(name, phase)


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
            return 0, "starting"
        return int(step or 0), phase or "starting"

    @property
    def begun(self) -> int | None:
        """The step that it went on from, once it has begun."""
        file = self._place / "begun"
        text = file.read_text() if file.exists() else ""
        return int(text) if text else None

    def strike(self, when: Callable[[], bool]) -> bool:
        """SIGKILL both as soon as `when` holds; False if they end before."""
        while all(process.is_alive() for process in self._processes):
            if when():
                # Does it still hold when nothing moves?
                self._signal(signal.SIGSTOP)
                if when():
                    self._signal(signal.SIGKILL)
                    self.wait()
                    return True
                self._signal(signal.SIGCONT)
            time.sleep(0.0005)
        return False

    def wait(self, seconds: float = 300) -> list[int | None]:
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
