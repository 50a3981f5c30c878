"""Captions a sample with the runner of `caption`, and times it. `forecast` evaluates the times.

Results are staged as `caption` would do, in a temporary folder that is removed afterwards.
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
from jobs.planning.forecast import Completion, long_enough
from jobs.planning.sample import SampleIndex
from jobs.runners.pools import Pools
from jobs.runners.work import Runner, Work
from jobs.workers.caption_shard import caption_rows
from jobs.workers.decode_shard import DecodeShard, pixels_of
from jobs.workers.micro_batches import MicroBatches

#: Time limit for trying batch sizes, in seconds.
_TRIAL_SECONDS = 15.0


@dataclass(frozen=True)
class SampleRun:
    """The sample's result: a completion per shard, busy seconds by stage, errors by class.

    `drained`: all of it was captioned before its time was up.
    """

    completions: tuple[Completion, ...]
    stages: dict[str, float]
    error_classes: dict[str, int]
    images: int
    drained: bool


@dataclass(frozen=True)
class BatchSizeTrial:
    """One captioner by itself: images a second by batch size, and the table's bytes per row."""

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
    """Caption the sample, for about `seconds` from when every captioner has started; None: all of it.

    `began` is the time at which the command started (`time.monotonic`).
    """
    # Several machines share no folder except the user's, so there each captioner writes to its own memory.
    folder = tempfile.mkdtemp(prefix="captioning-plan-")
    place = Location.parse(folder if nodes == 1 else f"memory://{folder}")
    index = SampleIndex.of(entries, shard_size, RunLayout(place))
    shards = index.shards()
    completions: list[Completion] = []
    stages: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    done = 0
    results = runner.caption_shards(work(index), pools, [shard.number for shard in shards])
    try:
        for result in results:
            done += result.images
            completions.append(Completion(time.monotonic() - began, done))
            stages.update(result.stages)
            errors.update(result.error_classes)
            if seconds is not None and long_enough(completions, pools.actors, seconds):
                break
    finally:
        results.close()
        shutil.rmtree(folder, ignore_errors=True)
    return SampleRun(
        tuple(completions), dict(stages), dict(sorted(errors.items())), done, len(completions) == len(shards)
    )


def try_batch_sizes(
    runner: Runner, entries: Sequence[Entry], pools: Pools, work: Callable[[SampleIndex], Work]
) -> BatchSizeTrial:
    """Have one captioner caption the same images in batches of several sizes."""
    sizes = [pools.batch_size, 2 * pools.batch_size, max(1, pools.batch_size // 2)]
    some = entries[: max(sizes)]
    # Nothing is written here; a layout needs a location.
    index = SampleIndex.of(some, len(some), RunLayout(Location.parse("memory://captioning-plan")))
    found: BatchSizeTrial = runner.call(_run_trial, work(index), sizes, pools=pools)
    return found


def _run_trial(work: Work, sizes: Sequence[int]) -> BatchSizeTrial:
    captioner = work.load()
    decode = DecodeShard(work.shard_io, work.preprocess, work.storage, work.fetch, work.decode)
    decoded = decode(pa.table({"shard": pa.array([0], pa.int64())}))
    pixels = pixels_of(decoded)
    began = time.monotonic()
    batches = MicroBatches(captioner, sizes[0], work.hang_s)
    rows = caption_rows(batches.caption, decoded, model=captioner.name)
    rates: dict[int, float] = {}
    # Sizes above the number of images would give the same batches.
    for size in [sizes[0], *(size for size in sizes[1:] if size <= len(pixels))]:
        if not len(pixels) or (rates and time.monotonic() - began > _TRIAL_SECONDS):
            break
        start = time.perf_counter()
        try:
            captioner.caption_pixels(pixels, batch_size=size)
        except Exception:  # most likely out of memory: not a size to advise
            continue
        rates[size] = len(pixels) / (time.perf_counter() - start)
    half = len(rows) // 2
    grown = _parquet_bytes(rows_to_table(rows)) - _parquet_bytes(rows_to_table(rows[:half]))
    return BatchSizeTrial(rates, grown / (len(rows) - half) if len(rows) >= 8 else None)


def _parquet_bytes(table: pa.Table) -> int:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.tell()
