"""One run of `caption`: check, index, caption what is pending, fold, verify, sum up.

Everything that can be wrong with the request is found before anything is written or loaded.
Knows the order of the steps; each step is somebody else's.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioning.config import to_dict
from captioning.errors import CaptioningError, InputError, RunConflictError, SettingsError, StorageError, UsageError
from captioning.retry import HURRIED, patience
from captioning.run.events import append_event
from captioning.run.folding import Folding
from captioning.run.growth import grow
from captioning.run.index import Index, write_segment
from captioning.run.layout import RunLayout, Shard
from captioning.run.record import RunRecord
from captioning.run.selection import EVERYTHING, Selection
from captioning.run.sources import Source, kept_schema, open_sources, require_image
from captioning.run.table import fold, pending_shards, schema_description
from captioning.run.verify import verify
from captioning.storage import Location
from jobs.caption_outcome import Outcome, listing_lines, summarise
from jobs.caption_settings import CaptionSettings
from jobs.caption_shard import LoadCaptioner
from jobs.pipeline import ShardResult, Work, caption_shards, cluster_nodes
from jobs.pools import Node, plan_pools
from jobs.progress import Progress, counted
from jobs.ray_session import ray_session

if TYPE_CHECKING:
    from captioning.captioner import CaptionerInfo

#: Seconds between two events of progress.
_EVENT_EVERY = 5.0
#: How often a shard whose staged file turns out damaged is captioned again.
_REPAIRS = 3


@dataclass(frozen=True)
class Request:
    """What a person asked for. `decoding` holds the decoding keys that were given, `selection` the images to take."""

    inputs: tuple[str, ...]
    output: str
    model: str | None
    settings: CaptionSettings
    decoding: dict[str, Any] = field(default_factory=dict)
    selection: Selection = EVERYTHING


def caption_archive(request: Request, progress_stream: Any = None) -> Outcome:
    """Caption what is pending of an archive; goes on with the run in OUTPUT if there is one.

    Raises `UsageError` before anything is written, `UnfinishedError` or `StorageError` when the
    work stops, and `KeyboardInterrupt` with a message when it is interrupted.
    """
    run = _CaptionRun(request, progress_stream)
    try:
        return run.go()
    except KeyboardInterrupt:
        run.note("interrupted")
        raise KeyboardInterrupt(
            f"{counted(run.finished(), 'image')} of this run finished and kept. Give the same command again to go on."
        ) from None
    except CaptioningError as error:
        run.note("stopped", reason=str(error))
        if isinstance(error, StorageError) and run.begun:
            kept = f"{counted(run.finished(), 'image')} of this run finished and kept. Once this is mended, give the "
            raise StorageError(error.error_class, f"{error.message} {kept}same command again to go on.") from error
        raise


class _CaptionRun:
    def __init__(self, request: Request, progress_stream: Any) -> None:
        self.request = request
        self.settings = request.settings
        self.stream = progress_stream
        self.started = time.monotonic()
        self.results: dict[int, ShardResult] = {}
        self.steady: float | None = None
        self.begun = False

        with patience(HURRIED):
            self.sources: list[Source] = self._open_sources()
            self.kept = kept_schema(self.sources)
            self.layout = RunLayout(Location.parse(request.output, self.settings.storage))
            self._check_output()
            self.info = self._inspect()
            self.record = self._check_record()

    def go(self) -> Outcome:
        index = Index.load(self.layout)
        listed = False
        if index.segments:
            fold(self.layout, index)
            if not pending_shards(self.layout, index):
                index, listed = self._grow(index), True
                if not pending_shards(self.layout, index):
                    return self._finish(index)
        else:
            for source in self.sources:
                try:
                    first = list(islice(source.entries(), 1))
                except StorageError as error:
                    raise InputError(f"INPUT cannot be listed: {error.message}") from error
                if not first:
                    raise require_image(source)
        with ray_session():
            nodes = cluster_nodes()
            plan_pools(self.settings.runtime, nodes, shards=1)
            if not index.segments:
                index, listed = self._list(), True
            self._caption(index, nodes)
            if not listed:
                index = self._grow(index)
                self._caption(index, nodes)
        return self._finish(index)

    def finished(self) -> int:
        """Images that this run has finished."""
        return sum(result.images for result in self.results.values())

    def note(self, kind: str, **fields: Any) -> None:
        """Add to the diary of a run that has begun; a diary that cannot be written stops nothing."""
        if not self.begun:
            return
        try:
            append_event(self.layout, kind, **fields)
        except StorageError as error:
            self._say(f"The event {kind!r} could not be noted: {error}")

    # Checks, in order of cost. Nothing is written and no weights are loaded.

    def _open_sources(self) -> list[Source]:
        try:
            return open_sources(self.request.inputs, self.settings.storage, self.settings.input)
        except StorageError as error:
            raise InputError(f"INPUT cannot be read: {error.message}") from error

    def _check_output(self) -> None:
        root = self.layout.root
        try:
            if root.info() is not None:
                raise UsageError(f"OUTPUT {root} is a file. Give a folder, which is made if it is not there.")
            root.check_writable()
        except StorageError as error:
            raise UsageError(
                f"OUTPUT {root} cannot be written to: {error.message} Give another one with -o."
            ) from error

    def _inspect(self) -> "CaptionerInfo":
        from captioning.captioner import inspect_captioner

        return inspect_captioner(
            self.request.model,
            decoding=self.request.decoding,
            precision=self.settings.runtime.precision,
            storage=self.settings.storage,
        )

    def _check_record(self) -> RunRecord | None:
        record = RunRecord.read(self.layout)
        if record is None:
            foreign = [name for name in self.layout.root.names() if name.endswith(".parquet")]
            if foreign:
                raise RunConflictError(
                    f"OUTPUT {self.layout.root} holds {foreign[0]}, which is of no run: readers of the folder would "
                    "take it for a part of the table. Give another OUTPUT with -o."
                )
            return None
        record.check(
            self.layout,
            inputs=self._given(),
            fingerprint_parts=self._fingerprint_parts(),
            selection=self.request.selection.to_dict(),
        )
        wanted = self.settings.output.shard_size
        if wanted is not None and wanted != record.shard_size:
            raise SettingsError(
                f"output.shard_size is {wanted}, but the run in {self.layout.root} has shards of "
                f"{record.shard_size} images for good. Leave the setting out, or give another OUTPUT."
            )
        self.begun = True
        return record

    def _given(self) -> tuple[str, ...]:
        return tuple(source.given for source in self.sources)

    def _archive(self) -> tuple[str, ...]:
        return tuple(source.location.uri for source in self.sources)

    def _fingerprint_parts(self) -> dict[str, Any]:
        return {"captioner": dict(self.info.identity), "columns": schema_description(self.kept)}

    # The archive.

    def _list(self) -> Index:
        """Index the archive; from here on there is a run in OUTPUT."""
        size = self.record.shard_size if self.record else self.settings.output.shard_size
        try:
            pending = write_segment(self.layout, self.sources, shard_size=size, selection=self.request.selection)
        except CaptioningError:
            _remove_empty_folders(self.layout)
            raise
        settings = to_dict(self.settings) | {
            "decoding": to_dict(self.info.decoding),
            "model": self.request.model,
            "preprocess": to_dict(self.info.preprocess),
        }
        record = RunRecord(
            inputs=self._given(),
            archive=self._archive(),
            shard_size=pending.shard_size,
            settings=settings,
            fingerprint_parts=self._fingerprint_parts(),
            selection=self.request.selection.to_dict(),
        )
        try:
            self.record = record.create(self.layout)
        except CaptioningError:
            pending.discard()
            raise
        self.begun = True
        index = pending.commit()
        for line in listing_lines(self.sources):
            self._say(line)
        if self.request.selection:
            self._say(f"{counted(index.rows_total, 'image')} selected by {self.request.selection}.")
        self.note("indexed", listed=index.rows_total, shards=index.shards_total)
        return index

    def _grow(self, index: Index) -> Index:
        """List the archive again, and take what is new into the index."""
        assert self.record is not None, "a run that grows has a record"
        if not self.request.selection.grows:
            return index
        growth = grow(index, self.sources, shard_size=self.record.shard_size, selection=self.request.selection)
        for line in growth.lines():
            self._say(line)
        if growth.pending is None:
            return index
        self.record = self.record.widen(self.layout, inputs=self._given(), archive=self._archive())
        index = growth.pending.commit()
        self.note("grown", new=growth.new, changed=growth.changed, vanished=growth.vanished)
        return index

    # The work.

    def _caption(self, index: Index, nodes: Sequence[Node]) -> None:
        """Caption and fold until nothing is pending."""
        for _ in range(1 + _REPAIRS):
            pending = pending_shards(self.layout, index)
            if not pending:
                break
            self._caption_pending(index, nodes, pending)
            fold(self.layout, index)

    def _caption_pending(self, index: Index, nodes: Sequence[Node], pending: list[Shard]) -> None:
        runtime = self.settings.runtime
        pools = plan_pools(runtime, nodes, shards=len(pending))
        load = LoadCaptioner(
            ref=absolute_ref(self.request.model),
            name=self.info.name,
            device=pools.device,
            precision=runtime.precision,
            decoding=self.request.decoding,
            storage=self.settings.storage,
            threads=pools.threads,
        )
        work = Work(
            index,
            self.info.preprocess,
            self.settings.storage,
            load,
            runtime.max_retries,
            fetching=self.settings.fetch,
            decoding=self.settings.decode,
            hang_s=runtime.hang_s,
        )
        images = sum(shard.rows for shard in pending)
        self.note("start", model=self.info.name, pending=images, shards=len(pending), pools=str(pools))
        with Progress(index.rows_total, index.rows_total - images, stream=self.stream) as progress:
            progress.say(
                f"{counted(images, 'image')} in {counted(len(pending), 'shard')} with {self.info.name}: {pools}."
            )
            diary = _Diary(self)
            try:
                with Folding(index, (shard.number for shard in pending)) as folding:
                    for result in caption_shards(work, pools, pending):
                        self.results[result.shard] = result
                        progress.add(result.images, result.errors)
                        self.steady = progress.steady_rate() or self.steady
                        diary.add(result)
                        folding.finished(result.shard)
            finally:
                diary.flush()

    # The end.

    def _finish(self, index: Index) -> Outcome:
        fold(self.layout, index)
        verdict = verify(self.layout)
        seconds = time.monotonic() - self.started
        summary = summarise(self.results.values(), verdict, seconds=seconds, steady_rate=self.steady)
        self.layout.summary.write_text(json.dumps(summary, indent=2) + "\n", temp=self.layout.tmp_dir)
        if self.results:
            self.note("finished", ok=verdict.ok, seconds=summary["seconds"])
        return Outcome(summary, verdict, self.settings.errors.max_fraction)

    def _say(self, text: str) -> None:
        Progress(0, stream=self.stream).say(text)


def absolute_ref(ref: str | None) -> str | None:
    """A checkpoint's folder as every process on this machine finds it; any other REF as it is."""
    if ref is None or "://" in ref or not Path(ref).expanduser().is_dir():
        return ref
    from captioning.refs import bundled_names

    return ref if ref in bundled_names() else str(Path(ref).expanduser().absolute())


class _Diary:
    """Adds finished shards to the events, a few seconds' worth at a time."""

    def __init__(self, run: _CaptionRun) -> None:
        self._run = run
        self._written = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._classes: Counter[str] = Counter()

    def add(self, result: ShardResult) -> None:
        self._counts.update(shards=1, images=result.images, errors=result.errors)
        self._classes.update(result.error_classes)
        if time.monotonic() - self._written >= _EVENT_EVERY:
            self.flush()

    def flush(self) -> None:
        if self._counts:
            classes = {"error_classes": dict(self._classes)} if self._classes else {}
            self._run.note("shards", **self._counts, **classes)
        self._counts.clear()
        self._classes.clear()
        self._written = time.monotonic()


def _remove_empty_folders(layout: RunLayout) -> None:
    """Leave nothing of a run that never began: folders only, and only those that are empty."""
    if not layout.root.is_local:
        return
    for folder in (layout.index_dir, layout.tmp_dir, layout.root / "_run", layout.root):
        try:
            folder.local_path.rmdir()
        except OSError:
            continue
