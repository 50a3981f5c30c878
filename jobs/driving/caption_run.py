"""One run of `caption`: check, index, caption what is pending, fold, verify, sum up.

Everything that can be wrong with the request is found before anything is written or loaded.
Knows the order of the steps; each step is somebody else's.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioning.config import to_dict
from captioning.errors import InputError, RunConflictError, SettingsError, StorageError, UsageError
from captioning.retries import INTERACTIVE, retry_policy
from captioning.run.book import IndexBook
from captioning.run.events import START
from captioning.run.folding import Folding
from captioning.run.growth import grow
from captioning.run.index import Index, write_segment
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.run.redo import RedoPlan, make_plan
from captioning.run.redo_choice import changed as changed_images
from captioning.run.selection import EVERYTHING, Selection
from captioning.run.sources import Source, kept_schema, require_image
from captioning.run.staging import fold, pending_shards
from captioning.run.table import schema_description
from captioning.storage import Location, unescape_name
from jobs.caption_settings import CaptionSettings
from jobs.driving.checks import fingerprint_parts, open_inputs, require_output
from jobs.driving.driver import REPAIRS, RunDriver
from jobs.driving.outcome import Outcome, listing_lines
from jobs.driving.redo import settle, work_off_plan
from jobs.progress import counted
from jobs.runners.choice import FEW_IMAGES, stays_here

if TYPE_CHECKING:
    pass

#: Counting the images beforehand takes no longer than this.
_LOOK_AHEAD_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """What a person asked for. `decoding` holds the decoding keys that were given, `selection` the images to take.

    `add` takes further INPUTs into a run, `refresh` captions again what changed in the archive.
    """

    inputs: tuple[str, ...]
    output: str
    model: str | None
    settings: CaptionSettings
    decoding: dict[str, Any] = field(default_factory=dict)
    selection: Selection = EVERYTHING
    add: bool = False
    refresh: bool = False


def caption_archive(request: Request, progress_stream: Any = None) -> Outcome:
    """Caption what is pending of an archive; goes on with the run in OUTPUT if there is one.

    Raises `UsageError` before anything is written, `RunLockedError` when another driver works in
    OUTPUT, `UnfinishedError` or `StorageError` when the work stops, and `KeyboardInterrupt` with a
    message when it is interrupted.
    """
    run = _CaptionRun(request, progress_stream)
    with run.locked("Give the same command again to go on."):
        return run.go()


class _CaptionRun(RunDriver):
    def __init__(self, request: Request, progress_stream: Any) -> None:
        storage = request.settings.storage
        layout = RunLayout(Location.parse(request.output, storage))
        super().__init__(layout, request.settings, request.model, request.decoding, progress_stream)
        self.request = request
        with retry_policy(INTERACTIVE):
            require_output(self.layout.root)
            before = RunRecord.read(self.layout)
            self.sources: list[Source] = self._open_inputs(request.inputs, before)
            self._add_recorded_inputs(before)
            self.kept = kept_schema(self.sources)
            # A name that the table has taken is refused now, before a new run is begun.
            schema_description(self.kept)
            self.info = self.inspect()
            self.record = self._check_record()

    def go(self) -> Outcome:
        self.record = self._check_record()  # another driver may have begun or ended the run before this one held it
        index = Index.load(self.layout)
        listed = False
        if index.segments:
            fold(self.layout, index)
            images: int | None = self._settle_and_count(index)
            if not images:
                index, listed = self._grow(index), True
                images = self._settle_and_count(index)
                if not images:
                    return self.finish()
        else:
            images = self._look_ahead()
        with self.with_runner(images):
            if not index.segments:
                index, listed = self._list(), True
            self._caption(index)
            if not listed:
                index = self._grow(index)
                self._caption(index)
        return self.finish()

    # Checks, in order of cost. Nothing is written and no weights are loaded.

    def _open_inputs(self, inputs: Sequence[str], before: RunRecord | None) -> list[Source]:
        return open_inputs(inputs, self.settings, self.layout.root, before)

    def _add_recorded_inputs(self, record: RunRecord | None) -> None:
        """With `--add`, the INPUTs of the run need not be given again."""
        if not self.request.add or record is None:
            return
        if not self.request.selection.grows:
            raise UsageError("--add has no place with --limit or --sample: their images were chosen once and for all.")
        given = self._given()
        others = [unescape_name(name) for name in record.inputs if name not in given]
        if others:
            self.sources = [*self._open_inputs(others, record), *self.sources]

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
            fingerprint_parts=fingerprint_parts(self.info, self.kept),
            selection=self.request.selection.to_dict(),
            add=self.request.add,
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

    def _kinds(self) -> tuple[str, ...]:
        return tuple(source.kind for source in self.sources)

    def _archive(self) -> tuple[str, ...]:
        return tuple(source.location.uri for source in self.sources)

    # The archive.

    def _look_ahead(self) -> int | None:
        """How many images there are to caption, where they are few and soon counted; else None.

        Raises `InputError` for an INPUT without any.
        """
        until = time.monotonic() + _LOOK_AHEAD_SECONDS
        limit = self.request.selection.most
        # Where it makes no difference, one is enough.
        most = FEW_IMAGES if stays_here(self.settings.runtime, 1) else 0
        count = 0
        for source in self.sources:
            try:
                some = 0
                for _ in source.entries():
                    some += 1
                    if count + some > most or time.monotonic() > until:
                        break
            except StorageError as error:
                raise InputError(f"INPUT cannot be listed: {error.message}") from error
            if not some:
                raise require_image(source)
            count += some
        if limit is not None:
            return limit if limit <= most else None
        return count if count <= most and time.monotonic() <= until else None

    def _list(self) -> Index:
        """Index the archive; from here on there is a run in OUTPUT."""
        size = self.record.shard_size if self.record else self.settings.output.shard_size
        pending = write_segment(self.layout, self.sources, shard_size=size, selection=self.request.selection)
        settings = to_dict(self.settings) | {
            "decoding": to_dict(self.info.decoding),
            "model": self.ref,
            "preprocess": to_dict(self.info.preprocess),
        }
        record = RunRecord(
            inputs=self._given(),
            kinds=self._kinds(),
            archive=self._archive(),
            shard_size=pending.shard_size,
            settings=settings,
            fingerprint_parts=fingerprint_parts(self.info, self.kept),
            selection=self.request.selection.to_dict(),
        )
        try:
            if self.record is not None:  # of a start that was killed before its index counted
                self.record = self.record.widen(
                    self.layout, inputs=record.inputs, archive=record.archive, kinds=record.kinds
                )
            else:
                self.record = record.create(self.layout)
        except BaseException:
            pending.discard()
            raise
        self.begun = True
        index = pending.commit()
        pa.default_memory_pool().release_unused()  # malloc's, and with it what Python's objects had
        for line in listing_lines(self.sources):
            self.say(line)
        if self.request.selection:
            self.say(f"{counted(index.rows_total, 'image')} selected by {self.request.selection}.")
        self.note("indexed", listed=index.rows_total, shards=index.shards_total)
        return index

    def _grow(self, index: Index) -> Index:
        """List the archive again, and take what is new into the index."""
        assert self.record is not None, "a run that grows has a record"
        if not (self.request.selection.grows or self.request.refresh):
            return index
        changed: list[tuple[NDArray[np.int64], pa.Table]] = []
        growth = grow(
            index,
            self.sources,
            shard_size=self.record.shard_size,
            selection=self.request.selection,
            on_changed=(lambda rows, table: changed.append((rows, table))) if self.request.refresh else None,
            added=[given for given in self._given() if given not in self.record.inputs],
            fresh=self.tally.shards(START),
        )
        for line in [*listing_lines(self.sources, index.segments), *growth.lines(refreshing=self.request.refresh)]:
            self.say(line)
        if changed:
            make_plan(self.layout, "refresh", changed_images(index, changed))
        if growth.pending is None:
            return index
        self.record = self.record.widen(self.layout, inputs=self._given(), archive=self._archive(), kinds=self._kinds())
        index = growth.pending.commit()
        self.note("grown", new=growth.new, changed=growth.changed, vanished=growth.vanished)
        return index

    # The work.

    def _settle_and_count(self, index: Index) -> int:
        """Rewrite the parts whose rows are staged, and count what is to be captioned, for the first time or again."""
        plan = RedoPlan.load(self.layout)
        again = plan.images if plan is not None and settle(self, plan, index) else 0
        return again + sum(shard.rows for shard in pending_shards(self.layout, index))

    def _caption(self, index: Index) -> None:
        """Caption and fold until nothing is pending, then what is to be made again."""
        for _ in range(1 + REPAIRS):
            pending = pending_shards(self.layout, index)
            if not pending:
                break
            numbers = [shard.number for shard in pending]
            with Folding(index, numbers) as folding:
                self.work_off(
                    IndexBook(index),
                    numbers,
                    images=sum(shard.rows for shard in pending),
                    total=index.rows_total,
                    finished=folding.finished,
                )
            fold(self.layout, index)
        plan = RedoPlan.load(self.layout)
        if plan is not None:
            work_off_plan(self, plan, index)
