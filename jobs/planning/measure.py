"""Captions a sample by the runner of `caption`, and times it.

What the sample makes is written where `caption` would stage it, in a temporary folder that is
removed. Knows how the sample is run; what follows from the times is `forecast`'s.
"""

import io
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.run.layout import RunLayout
from captioning.run.sources import Entry
from captioning.run.table import rows_to_table
from captioning.storage import Location
from jobs.planning.forecast import Mark, enough
from jobs.planning.sample import SampleIndex
from jobs.runners.pools import Pools
from jobs.runners.work import Runner, Work
from jobs.workers.caption_shard import caption_rows
from jobs.workers.decode_shard import DecodeShard, pixels_of
from jobs.workers.micro_batches import MicroBatches

#: One captioner tries batch sizes for so many seconds at most.
_TRIAL_SECONDS = 15.0


@dataclass(frozen=True)
class SampleRun:
    """What the sample took: a mark a shard, busy seconds by stage, errors by class.

    `drained` says that it came to its end before its time was over.
    """

    marks: tuple[Mark, ...]
    stages: dict[str, float]
    error_classes: dict[str, int]
    images: int
    drained: bool


@dataclass(frozen=True)
class Trial:
    """One captioner by itself: images a second by batch size, and the table's bytes a row."""

    batch_rates: dict[int, float]
    bytes_a_row: float | None


def run_sample(
    runner: Runner,
    entries: Sequence[Entry],
    shard_size: int,
    pools: Pools,
    work: Callable[[SampleIndex], Work],
    *,
    began: float,
    seconds: float | None,
    nodes: int,
) -> SampleRun:
    """Caption the sample, for about `seconds` once every captioner has begun; None: all of it.

    `began` is when the command did (`time.monotonic`).
    """
    # On several machines there is no folder that all of them see and that is not the user's:
    # there, each captioner writes into its own memory.
    folder = tempfile.mkdtemp(prefix="captioning-plan-")
    place = Location.parse(folder if nodes == 1 else f"memory://{folder}")
    index = SampleIndex.of(entries, shard_size, RunLayout(place))
    shards = index.shards()
    marks: list[Mark] = []
    stages: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    done = 0
    results = runner.caption_shards(work(index), pools, [shard.number for shard in shards])
    try:
        for result in results:
            done += result.images
            marks.append(Mark(time.monotonic() - began, done))
            stages.update(result.stages)
            errors.update(result.error_classes)
            if seconds is not None and enough(marks, pools.actors, seconds):
                break
    finally:
        results.close()
        shutil.rmtree(folder, ignore_errors=True)
    return SampleRun(tuple(marks), dict(stages), dict(sorted(errors.items())), done, len(marks) == len(shards))


def try_batch_sizes(
    runner: Runner, entries: Sequence[Entry], pools: Pools, work: Callable[[SampleIndex], Work]
) -> Trial:
    """Let one captioner of these pools caption the same images in batches of several sizes."""
    sizes = [pools.batch_size, 2 * pools.batch_size, max(1, pools.batch_size // 2)]
    some = entries[: max(sizes)]
    # Nothing is written: the place is only a name.
    index = SampleIndex.of(some, len(some), RunLayout(Location.parse("memory://captioning-plan")))
    found: Trial = runner.call(_trial, work(index), sizes, pools=pools)
    return found


def _trial(work: Work, sizes: Sequence[int]) -> Trial:
    captioner = work.load()
    decode = DecodeShard(work.shard_io, work.preprocess, work.storage, work.fetch, work.decode)
    decoded = decode(pa.table({"shard": pa.array([0], pa.int64())}))
    pixels = pixels_of(decoded)
    began = time.monotonic()
    batches = MicroBatches(captioner, sizes[0], work.hang_s)
    rows = caption_rows(batches.caption, decoded, model=captioner.name)
    rates: dict[int, float] = {}
    # Of more images than there are, batches would be the same.
    for size in [sizes[0], *(size for size in sizes[1:] if size <= len(pixels))]:
        if not len(pixels) or (rates and time.monotonic() - began > _TRIAL_SECONDS):
            break
        start = time.perf_counter()
        try:
            captioner.caption_pixels(pixels, batch_size=size)
        except Exception:  # too large for the memory, most likely: no size to advise
            continue
        rates[size] = len(pixels) / (time.perf_counter() - start)
    half = len(rows) // 2
    grown = _parquet_bytes(rows_to_table(rows)) - _parquet_bytes(rows_to_table(rows[:half]))
    return Trial(rates, grown / (len(rows) - half) if len(rows) >= 8 else None)


def _parquet_bytes(table: pa.Table) -> int:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.tell()
