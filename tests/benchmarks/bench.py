"""What every part of the benchmark is given: photos, captioners, rounds, and a way to run a program in an environment
that is the same for all. Knows nothing of what is measured."""

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

#: The repository that is measured.
ROOT = Path(__file__).resolve().parents[2]
#: The same for all: no network, no cluster, one thread a process unless the program decides otherwise.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
#: What is short is repeated at least as often.
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Bench:
    """One call of the benchmark; its files are in `folder`."""

    folder: Path
    source: Path | None
    """Folder of photos; None: made ones."""
    count: int
    models: tuple[str, ...] = (DEFAULT,)
    """References of captioners; rivals run the first one only."""
    rounds: int = LEAST_ROUNDS
    programs: tuple[str, ...] = ()
    """Which programs the part `jobs` runs; all where none is named."""
    shards: str | None = None
    full_scale: bool = False
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    @cached_property
    def photos(self) -> Path:
        """The folder of photos, made at the first call."""
        folder = self.folder / "photos"
        images = collect_photos(self.source, folder, self.count)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{images:,} photos of {size / images / 1000:,.0f} kB on average, {self.cores} cores.", flush=True)
        return folder

    def some_photos(self, count: int) -> Path:
        """A folder of its own with `count` of the photos, some again under another name where there are fewer."""
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
        """Run Python with `command` in `folder`, its words going to LOG.log; see `measure`."""
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return measure(
            [sys.executable, *command],
            environment={**kept, **_ENVIRONMENT, **(environment or {})},
            log=self.folder / f"{log}.log",
            folder=folder,
            role_of=role_of,
        )


def in_turn(cases: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Every case once a round, with the round's number; each round begins with another case."""
    for number in range(rounds):
        first = number % len(cases)
        for case in [*cases[first:], *cases[:first]]:
            yield number, case
