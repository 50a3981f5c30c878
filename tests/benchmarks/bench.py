"""Shared by all parts of the benchmark: photos, captioners, rounds, and a way to run programs in one environment."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from captioning.refs import DEFAULT
from tests.benchmarks.measure import Measured, measure
from tests.benchmarks.photos import collect_photos

T = TypeVar("T")

#: The measured repository.
ROOT = Path(__file__).resolve().parents[2]
#: The environment of all programs: no network, no cluster, one thread per process unless the program sets it.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
#: The least number of rounds of short measurements.
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Bench:
    """One invocation of the benchmark; its files are in `folder`."""

    folder: Path
    source: Path | None
    """The folder of photos; None: synthetic ones."""
    count: int
    models: tuple[str, ...] = (DEFAULT,)
    """The captioners' REFs; rivals run only the first one."""
    rounds: int = LEAST_ROUNDS
    programs: tuple[str, ...] = ()
    """The programs of the part `jobs`; empty: all."""
    shards: str | None = None
    full_scale: bool = False
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    @cached_property
    def photos(self) -> Path:
        """The folder of photos, created at the first call."""
        folder = self.folder / "photos"
        images = collect_photos(self.source, folder, self.count)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{images:,} photos of {size / images / 1000:,.0f} kB on average, {self.cores} cores.", flush=True)
        return folder

    def some_photos(self, count: int) -> Path:
        """A new folder with `count` photos, some of them repeated under other names if there are fewer."""
        folder = self.folder / f"photos-{count}"
        folder.mkdir(exist_ok=True)
        photos = sorted(self.photos.iterdir())
        for path in folder.iterdir():
            path.unlink()
        for number in range(count):
            photo = photos[number % len(photos)]
            os.link(photo, folder / f"{number:06d}{photo.suffix}")
        return folder

    def python(
        self,
        command: Sequence[str],
        log: str,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
        role_of: Callable[[str], str] | None = None,
    ) -> Measured:
        """Run Python with `command` in `folder`, with its output in LOG.log; see `measure`."""
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return measure(
            [sys.executable, *command],
            environment={**kept, **_ENVIRONMENT, **(environment or {})},
            log=self.folder / f"{log}.log",
            folder=folder,
            role_of=role_of,
        )


def in_turn(cases: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Yield every case once per round, with the round's number; each round starts with another case."""
    for number in range(rounds):
        first = number % len(cases)
        for case in [*cases[first:], *cases[:first]]:
            yield number, case
