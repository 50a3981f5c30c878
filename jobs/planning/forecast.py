"""The arithmetic of `plan`: from what a sample took to what the archive will take.

Knows times and counts; nothing of Ray, captioners or files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from jobs.runners.pools import CPU_BATCH

#: Another batch size is advised when it is so many times as fast.
_WORTH_IT = 1.05
_MILLION = 1_000_000


@dataclass(frozen=True)
class Mark:
    """A finished shard: when, in seconds since the command began, and the images finished by then."""

    seconds: float
    images: int


@dataclass(frozen=True)
class Steady:
    """Images a second once running, and the seconds that pass before, as if nothing was done in them.

    `rough` says that the sample was too small to tell the two apart well.
    """

    images_per_second: float
    startup_seconds: float
    rough: bool = False

    def seconds(self, images: int) -> float:
        """The time that so many images take, start-up included."""
        return self.startup_seconds + images / self.images_per_second if images else 0.0


def steady(marks: Sequence[Mark], workers: int, *, drained: bool) -> Steady:
    """The rate of `workers` captioners between the first shard of each and the last shards.

    `drained` says that the sample came to its end: its last shards were made by fewer captioners
    than there are, and are left out. At least one mark is needed.
    """
    first = workers - 1
    last = len(marks) - (workers if drained else 1)
    rough = last - first < 2
    if rough:
        # One captioner's first shard is told from the rest where that is possible at all.
        first, last = (0, len(marks) - 1) if len(marks) > 2 else (-1, len(marks) - 1)
    start = marks[first] if first >= 0 else Mark(0.0, 0)
    end = marks[last]
    rate = (end.images - start.images) / max(end.seconds - start.seconds, 1e-6)
    return Steady(rate, max(0.0, end.seconds - end.images / rate), rough)


def enough(marks: Sequence[Mark], workers: int, seconds: float) -> bool:
    """Whether a sample has run for `seconds` since each captioner had its first shard."""
    if len(marks) < 3 * workers + 2:
        return False
    return marks[-1].seconds - marks[workers - 1].seconds >= seconds


def sample_shard_size(run_shard_size: int, batch_size: int, *, sample: int, workers: int) -> int:
    """Images a shard of the sample: as in the run if there are shards enough for a rate, else fewer.

    Shards of several micro-batches are no quicker than shards of one: small ones tell the same sooner.
    """
    wanted = min(run_shard_size, max(32, batch_size * (4 if batch_size > CPU_BATCH else 1)))
    return max(1, min(wanted, sample // (4 * workers) or 1))


@dataclass(frozen=True)
class Cost:
    """Money in the currency of the price: for the images that are left, and for a million at the steady rate."""

    price_per_hour: float
    nodes: int
    archive: float
    million: float


def cost(rate: Steady, images: int, *, price_per_hour: float, nodes: int) -> Cost:
    """What `images` cost on `nodes` machines at the price of one an hour."""
    hourly = price_per_hour * nodes
    million = _MILLION / rate.images_per_second / 3600 * hourly
    return Cost(price_per_hour, nodes, rate.seconds(images) / 3600 * hourly, million)


def shares(stages: Mapping[str, float]) -> dict[str, float]:
    """Each stage's share of the busy seconds, which add up to 1."""
    whole = sum(stages.values())
    return {name: seconds / whole if whole else 0.0 for name, seconds in stages.items()}


@dataclass(frozen=True)
class Resources:
    """What the sample ran on."""

    cores: float
    gpus: float
    nodes: int
    actors: int
    decode_tasks: int | None
    batch_size: int


@dataclass(frozen=True)
class Advice:
    """Settings that suit this archive and these machines, and what would make it faster."""

    actors: int
    decode_tasks: int | None
    batch_size: int
    lines: tuple[str, ...]


def advise(
    on: Resources, stages: Mapping[str, float], images: int, rate: Steady, batch_rates: Mapping[int, float]
) -> Advice:
    """Advice from the busy seconds of `images` images and the rates of one captioner at several batch sizes."""
    lines = []
    batch = on.batch_size
    here = batch_rates.get(batch)
    if here:
        best = max(batch_rates, key=lambda size: batch_rates[size])
        if batch_rates[best] > _WORTH_IT * here:
            gain = 100 * (batch_rates[best] / here - 1)
            lines.append(f"runtime.batch_size={best} makes the model {gain:.0f}% faster than {batch} does")
            batch = best
    feeding = (stages.get("fetch", 0.0) + stages.get("decode", 0.0)) / max(1, images)
    decode_tasks = on.decode_tasks
    if on.gpus:
        needed = ceil(rate.images_per_second * feeding) + 1
        possible = on.actors * images / max(stages.get("model", 0.0), 1e-6)
        if possible > 1.2 * rate.images_per_second:
            cores = ceil(possible * feeding)
            lines.append(
                f"the GPUs wait for fetching and decoding: about {cores:,} CPU cores would keep them busy "
                f"(there are {on.cores:g})"
            )
            needed = max(needed, int(on.cores))
        decode_tasks = max(1, min(needed, int(on.cores)))
    elif on.decode_tasks is not None and stages.get("fetch", 0.0) > stages.get("model", 0.0):
        decode_tasks = 2 * on.decode_tasks
        lines.append(f"fetching is the longest stage: runtime.decode_tasks={decode_tasks} fetches more at a time")
    return Advice(on.actors, decode_tasks, batch, tuple(lines))
