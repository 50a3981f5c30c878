"""Shared by the tests of lost machines: slowed-down jobs on a simulated cluster, and records of what ran where."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.machines import ROOT, Machines

PACE = ROOT / "tests" / "cluster" / "pace"
#: Seconds to wait for a job to reach a state, enough for a very busy computer.
PATIENCE = 500.0


class Rehearsal:
    """A cluster whose workers take at least `seconds` per shard (or step), and record it in `folder`."""

    def __init__(self, folder: Path, *, seconds: float, **options: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(PACE), str(ROOT)])
        pace = {"PYTHONPATH": path, "PACE_FOLDER": str(folder), "PACE_SECONDS": str(seconds)}
        self.machines = Machines(environment=pace, **options)

    def __enter__(self) -> "Rehearsal":
        return self

    def __exit__(self, *_: object) -> None:
        self.machines.close()

    def job(self, *arguments: object, environment: Mapping[str, str] | None = None) -> "Job":
        """`python -m jobs …` on the head."""
        command = [sys.executable, "-m", "jobs", *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        return Job(self.machines.start(command, environment=environment, **options))

    def noted(self, what: str) -> list[list[str]]:
        """The lines of `shards` or `steps` so far, split; the first word is the machine."""
        file = self.folder / what
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def shares(self, what: str, *, after: int = 0) -> Counter[str]:
        """How many lines each machine has added after the first `after`."""
        return Counter(line[0] for line in self.noted(what)[after:])


class Job:
    """A running job."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached()` is true, while the job runs."""
        until = time.monotonic() + PATIENCE
        while not reached():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise AssertionError(f"it ended, or was too slow: {self.process.communicate()[0][-3000:]}")
            time.sleep(0.1)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def end(self, seconds: float = PATIENCE) -> tuple[int, str]:
        """Wait for its end; its exit code and its output."""
        try:
            said, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, _ = self.process.communicate()
            raise AssertionError(f"it did not end: {said[-3000:]}") from None
        return self.process.returncode, said


def run_here(arguments: Sequence[object]) -> None:
    """`python -m jobs …` on this computer, without a cluster."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "jobs", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
