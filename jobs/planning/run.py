"""Makes a plan: check, list, caption a sample, forecast. Writes only temporary files."""

import io
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from captioning.captioner_info import CaptionerInfo, inspect_captioner
from captioning.run.index import choose_shard_size
from captioning.run.layout import RunLayout
from captioning.run.progress import RunProgress, run_progress
from captioning.run.record import RunRecord
from captioning.run.shard_io import IndexShardIO
from captioning.run.sources import Source, kept_schema
from captioning.storage import Location
from jobs.caption_settings import CaptionSettings
from jobs.driving.checks import fingerprint_parts, open_inputs, require_output
from jobs.driving.driver import absolute_ref
from jobs.driving.make_work import make_work
from jobs.planning.forecast import (
    Advice,
    Cost,
    Resources,
    SteadyRate,
    advise,
    cost,
    sample_shard_size,
    stage_shares,
    steady_rate,
)
from jobs.planning.measure import BatchSizeTrial, SampleRun, run_sample, try_batch_sizes
from jobs.planning.sample import SampleIndex, Survey, survey_archive
from jobs.progress import counted
from jobs.runners.choice import open_runner, runs_locally
from jobs.runners.pools import Pools, plan_pools
from jobs.runners.work import Work

#: The default sample size, and for how many seconds it is captioned at full speed.
MOST_SAMPLED = 16_384
_STEADY_SECONDS = 25.0


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The user's request. `sample` None: as many images as take about a minute."""

    inputs: tuple[str, ...]
    output: str | None
    model: str | None
    settings: CaptionSettings
    decoding: dict[str, Any]
    sample: int | None
    price_per_hour: float | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The result of `plan`. `pending` counts images without a row in OUTPUT: all of them where there is no run."""

    survey: Survey
    listing_seconds: float
    pending: int
    run_exists: bool
    model: str
    pools: Pools
    resources: Resources
    run: SampleRun
    trial: BatchSizeTrial
    rate: SteadyRate
    advice: Advice
    cost: Cost | None

    @property
    def seconds(self) -> float:
        """The forecast time for the pending images."""
        return self.rate.seconds(self.pending)

    @property
    def stage_shares(self) -> dict[str, float]:
        """Each stage's share of the busy seconds."""
        return stage_shares(self.run.stages)

    @property
    def table_bytes(self) -> int | None:
        """The table's approximate size."""
        if self.trial.bytes_a_row is None:
            return None
        return round(self.trial.bytes_a_row * self.survey.images) + self.survey.kept_bytes


def make_plan(request: PlanRequest, notify: Callable[[str], None]) -> Plan:
    """Caption a sample and forecast the rest.

    Raises `UsageError` for what `caption` would also refuse, and `UnfinishedError` or `StorageError`
    where the sample cannot be captioned at all.
    """
    began = time.monotonic()
    settings = request.settings
    sources, layout, record = _open(request)
    info = inspect_captioner(
        request.model,
        decoding=request.decoding,
        precision=settings.runtime.precision,
        storage=settings.storage,
    )
    run_exists: _ExistingRun | None = None
    if layout is not None and record is not None:
        _check_record(record, layout, sources, info)
        run_exists = _ExistingRun(record, run_progress(layout))
    notify("Listing the archive.")
    listing = time.monotonic()
    archive = survey_archive(sources, request.sample or MOST_SAMPLED)
    listing_seconds = time.monotonic() - listing
    pending = run_exists.pending(archive) if run_exists is not None else archive.images

    # With nothing left to do, plan for all of it.
    todo = pending or archive.images
    # Ray reports the sample's terminated actors on stdout; that is expected here.
    with redirect_stdout(io.StringIO()), open_runner(settings.runtime, todo) as runner:
        nodes = runner.nodes()
        wanted = settings.output.shard_size or choose_shard_size(archive.images)
        workers = runner.max_workers(-(-todo // wanted), todo)
        pools = plan_pools(settings.runtime, nodes, shards=workers)
        size = sample_shard_size(wanted, pools.batch_size, sample=len(archive.sample), workers=pools.actors)

        def work(index: SampleIndex) -> Work:
            ref = absolute_ref(request.model)
            return make_work(IndexShardIO(index), pools, settings, info, ref=ref, decoding=request.decoding)

        limit = "" if request.sample else f" for about {_STEADY_SECONDS:.0f} s at full speed"
        notify(f"{counted(archive.images, 'image')}; captioning a sample{limit}: {info.name}, {pools}.")
        run = run_sample(
            runner,
            archive.sample,
            size,
            pools,
            work,
            began=began,
            seconds=None if request.sample else _STEADY_SECONDS,
            nodes=len(nodes),
        )
        notify("Trying other batch sizes.")
        trial = try_batch_sizes(runner, archive.sample, pools, work)
    resources = Resources(
        cores=sum(node.cpus for node in nodes),
        gpus=sum(node.gpus for node in nodes) if pools.device == "cuda" else 0.0,
        nodes=len(nodes),
        actors=pools.actors,
        # Without Ray every captioner has its own decoder.
        decode_tasks=None if runs_locally(settings.runtime, todo) else pools.decode_tasks,
        batch_size=pools.batch_size,
    )
    rate = steady_rate(run.completions, min(pools.actors, len(run.completions)), drained=run.drained)
    price = request.price_per_hour
    return Plan(
        survey=archive,
        listing_seconds=listing_seconds,
        pending=pending,
        run_exists=run_exists is not None and run_exists.progress.images > 0,
        model=info.name,
        pools=pools,
        resources=resources,
        run=run,
        trial=trial,
        rate=rate,
        advice=advise(resources, run.stages, run.images, rate, trial.batch_rates),
        cost=cost(rate, pending, price_per_hour=price, nodes=len(nodes)) if price is not None else None,
    )


@dataclass(frozen=True)
class _ExistingRun:
    """The run that is in OUTPUT already."""

    record: RunRecord
    progress: RunProgress

    def pending(self, archive: Survey) -> int:
        """Images without a row: those of its index, and new ones of the archive, if the run takes them."""
        new = 0 if self.record.selection else max(0, archive.images - self.progress.images)
        return self.progress.pending + new


def _open(request: PlanRequest) -> tuple[list[Source], RunLayout | None, RunRecord | None]:
    """The INPUTs, and the OUTPUT and its record, if any. Raises `UsageError`."""
    settings = request.settings
    if request.output is None:
        return open_inputs(request.inputs, settings, None, None), None, None
    layout = RunLayout(Location.parse(request.output, settings.storage))
    require_output(layout.root)
    record = RunRecord.read(layout)
    return open_inputs(request.inputs, settings, layout.root, record), layout, record


def _check_record(record: RunRecord, layout: RunLayout, sources: Sequence[Source], info: CaptionerInfo) -> None:
    """Raise `RunConflictError` for a run that `caption` would not continue."""
    given = tuple(source.given for source in sources)
    parts = fingerprint_parts(info, kept_schema(sources))
    record.check(layout, inputs=given, fingerprint_parts=parts, selection=record.selection)
