"""The arithmetic of `plan`: extrapolates from the times of a sample to the whole archive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from jobs.runners.pools import CPU_BATCH

#: Another batch size is advised when it is this many times as fast.
_WORTH_IT = 1.05
_MILLION = 1_000_000


@dataclass(frozen=True)
class Completion:
    """A finished shard: seconds since the command began, and the images finished by then."""

    seconds: float
    images: int


@dataclass(frozen=True)
class SteadyRate:
    """Images a second once running, and the start-up seconds before, counted as if nothing was done in them.

    `rough`: the sample was too small to separate the two well.
    """

    images_per_second: float
    startup_seconds: float
    rough: bool = False

    def seconds(self, images: int) -> float:
        """The time that `images` take, start-up included."""
        return self.startup_seconds + images / self.images_per_second if images else 0.0


def steady_rate(completions: Sequence[Completion], workers: int, *, drained: bool) -> SteadyRate:
    """The rate of `workers` captioners, measured from the first shard of each on.

    `drained`: the sample ran to its end, where fewer captioners were still at work; those last shards
    are left out. At least one completion is needed.
    """
    first = workers - 1
    last = len(completions) - (workers if drained else 1)
    rough = last - first < 2
    if rough:
        # At least leave out the first shard, if there are others.
        first, last = (0, len(completions) - 1) if len(completions) > 2 else (-1, len(completions) - 1)
    start = completions[first] if first >= 0 else Completion(0.0, 0)
    end = completions[last]
    rate = (end.images - start.images) / max(end.seconds - start.seconds, 1e-6)
    return SteadyRate(rate, max(0.0, end.seconds - end.images / rate), rough)


def long_enough(completions: Sequence[Completion], workers: int, seconds: float) -> bool:
    """Whether a sample has run for `seconds` since each captioner had its first shard."""
    if len(completions) < 3 * workers + 2:
        return False
    return completions[-1].seconds - completions[workers - 1].seconds >= seconds


def sample_shard_size(run_shard_size: int, batch_size: int, *, sample: int, workers: int) -> int:
    """Images per shard of the sample: as in the run if that gives enough shards for a rate, else fewer.

    Shards of several micro-batches are no faster than shards of one, so small ones give the same rate sooner.
    """
    wanted = min(run_shard_size, max(32, batch_size * (4 if batch_size > CPU_BATCH else 1)))
    return max(1, min(wanted, sample // (4 * workers) or 1))


@dataclass(frozen=True)
class Cost:
    """Money in the currency of the price: for the remaining images, and for a million at the steady rate."""

    price_per_hour: float
    nodes: int
    archive: float
    million: float


def cost(rate: SteadyRate, images: int, *, price_per_hour: float, nodes: int) -> Cost:
    """What `images` cost on `nodes` machines, at the hourly price of one."""
    hourly = price_per_hour * nodes
    million = _MILLION / rate.images_per_second / 3600 * hourly
    return Cost(price_per_hour, nodes, rate.seconds(images) / 3600 * hourly, million)


def stage_shares(stages: Mapping[str, float]) -> dict[str, float]:
    """Each stage's share of the busy seconds; shares add up to 1."""
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
    """Suitable settings for this archive and these machines, and what would make it faster."""

    actors: int
    decode_tasks: int | None
    batch_size: int
    lines: tuple[str, ...]


def advise(
    on: Resources, stages: Mapping[str, float], images: int, rate: SteadyRate, batch_rates: Mapping[int, float]
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
