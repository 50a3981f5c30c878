"""One `plan`: check, list, caption a sample, forecast. Nothing is written but temporary files.

Knows the order of the steps; each step is somebody else's.
"""

import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from captioning.captioner_info import CaptionerInfo, inspect_captioner
from captioning.errors import StorageError, UsageError
from captioning.run.book import IndexBook
from captioning.run.index import choose_shard_size
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.run.sources import Source, kept_schema, open_sources
from captioning.run.standing import Standing, standing
from captioning.run.table import schema_description
from captioning.storage import Location
from jobs.caption_settings import CaptionSettings
from jobs.driving.driver import absolute_ref
from jobs.driving.make_work import make_work
from jobs.planning.forecast import (
    Advice,
    Cost,
    Resources,
    Steady,
    advise,
    cost,
    sample_shard_size,
    shares,
    steady,
)
from jobs.planning.measure import SampleRun, Trial, run_sample, try_batch_sizes
from jobs.planning.sample import SampleIndex, Survey, survey
from jobs.progress import counted
from jobs.runners.choice import open_runner, stays_here
from jobs.runners.pools import Pools, plan_pools
from jobs.runners.work import Work

#: Images that are drawn when nobody says how many, and seconds for which they are captioned at full speed.
MOST_SAMPLED = 16_384
_STEADY_SECONDS = 25.0


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What a person asked for. `sample` None: as many images as about a minute takes."""

    inputs: tuple[str, ...]
    output: str | None
    model: str | None
    settings: CaptionSettings
    decoding: dict[str, Any]
    sample: int | None
    price_per_hour: float | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan` found out. `pending` are images without a row in OUTPUT; all of them where there is no run."""

    survey: Survey
    listing_seconds: float
    pending: int
    run_there: bool
    model: str
    pools: Pools
    resources: Resources
    run: SampleRun
    trial: Trial
    rate: Steady
    advice: Advice
    cost: Cost | None

    @property
    def seconds(self) -> float:
        """The time for what is pending."""
        return self.rate.seconds(self.pending)

    @property
    def shares(self) -> dict[str, float]:
        """Each stage's share of the busy seconds."""
        return shares(self.run.stages)

    @property
    def table_bytes(self) -> int | None:
        """The table's size, about."""
        if self.trial.bytes_a_row is None:
            return None
        return round(self.trial.bytes_a_row * self.survey.images) + self.survey.kept_bytes


def make_plan(request: PlanRequest, say: Callable[[str], None]) -> Plan:
    """Caption a sample and forecast the rest.

    Raises `UsageError` for what `caption` would refuse too, and `UnfinishedError` or `StorageError`
    where the sample cannot be captioned at all.
    """
    began = time.monotonic()
    settings = request.settings
    sources = open_sources(request.inputs, settings.storage, settings.input)
    info = inspect_captioner(
        request.model,
        decoding=request.decoding,
        precision=settings.runtime.precision,
        storage=settings.storage,
    )
    there = _check_output(request, sources, info)
    say("Listing the archive.")
    before = time.monotonic()
    archive = survey(sources, request.sample or MOST_SAMPLED)
    listing_seconds = time.monotonic() - before
    where = standing(there[0]) if there is not None else None
    pending = archive.images if there is None or where is None else _pending(there[1], where, archive)

    # With nothing left to do: what all of it would take.
    todo = pending or archive.images
    # Ray tells on stdout of the actors that are ended with the sample: here that is no news.
    with redirect_stdout(io.StringIO()), open_runner(settings.runtime, todo) as runner:
        nodes = runner.nodes()
        wanted = settings.output.shard_size or choose_shard_size(archive.images)
        workers = runner.most_workers(-(-todo // wanted), todo)
        pools = plan_pools(settings.runtime, nodes, shards=workers)
        size = sample_shard_size(wanted, pools.batch_size, sample=len(archive.sample), workers=pools.actors)

        def work(index: SampleIndex) -> Work:
            ref = absolute_ref(request.model)
            return make_work(IndexBook(index), pools, settings, info, ref=ref, decoding=request.decoding)

        limit = "" if request.sample else f", for about {_STEADY_SECONDS:.0f} s at full speed"
        say(f"{counted(archive.images, 'image')}; captioning a sample{limit}: {info.name}, {pools}.")
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
        say("Trying other batch sizes.")
        trial = try_batch_sizes(runner, archive.sample, pools, work)
    resources = Resources(
        cores=sum(node.cpus for node in nodes),
        gpus=sum(node.gpus for node in nodes) if pools.device == "cuda" else 0.0,
        nodes=len(nodes),
        actors=pools.actors,
        # Without Ray every captioner has what decodes for it.
        decode_tasks=None if stays_here(settings.runtime, todo) else pools.decode_tasks,
        batch_size=pools.batch_size,
    )
    rate = steady(run.marks, min(pools.actors, len(run.marks)), drained=run.drained)
    price = request.price_per_hour
    return Plan(
        survey=archive,
        listing_seconds=listing_seconds,
        pending=pending,
        run_there=where is not None and where.images > 0,
        model=info.name,
        pools=pools,
        resources=resources,
        run=run,
        trial=trial,
        rate=rate,
        advice=advise(resources, run.stages, run.images, rate, trial.batch_rates),
        cost=cost(rate, pending, price_per_hour=price, nodes=len(nodes)) if price is not None else None,
    )


def _pending(record: RunRecord, where: Standing, archive: Survey) -> int:
    """Images that a run lacks: those of its index, and what is new in the archive if it takes that."""
    new = 0 if record.selection else max(0, archive.images - where.images)
    return where.pending + new


def _check_output(
    request: PlanRequest, sources: list[Source], info: CaptionerInfo
) -> tuple[RunLayout, RunRecord] | None:
    """The run in OUTPUT, if one is given and there is a run in it. Raises `UsageError` where `caption` would."""
    if request.output is None:
        return None
    layout = RunLayout(Location.parse(request.output, request.settings.storage))
    root = layout.root
    if root.info() is not None:
        raise UsageError(f"OUTPUT {root} is a file. Give a folder, which is made if it is not there.")
    try:
        root.check_writable()
    except StorageError as error:
        raise UsageError(f"OUTPUT {root} cannot be written to: {error.message} Give another one with -o.") from error
    record = RunRecord.read(layout)
    if record is None:
        return None
    parts = {"captioner": dict(info.identity), "columns": schema_description(kept_schema(sources))}
    given = tuple(source.given for source in sources)
    record.check(layout, inputs=given, fingerprint_parts=parts, selection=record.selection)
    return layout, record
