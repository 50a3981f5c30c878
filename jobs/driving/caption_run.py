"""One run of `caption`: check, index, caption pending shards, fold, verify, summarise.

Errors in the request are found before anything is written or loaded. This module is the sequence of the steps,
each of which is implemented elsewhere.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioning.config import to_dict
from captioning.errors import InputError, RunConflictError, SettingsError, StorageError, UsageError
from captioning.retries import INTERACTIVE, retry_policy
from captioning.run.events import START
from captioning.run.folding import Folding
from captioning.run.growth import grow
from captioning.run.index import Index, write_segment
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.run.redo import RedoPlan, make_plan
from captioning.run.redo_selection import changed_images
from captioning.run.selection import EVERYTHING, Selection
from captioning.run.shard_io import IndexShardIO
from captioning.run.sources import Source, kept_schema, no_images_error
from captioning.run.staging import fold, pending_shards
from captioning.run.table import schema_description
from captioning.storage import Location, unescape_name
from jobs.caption_settings import CaptionSettings
from jobs.driving.checks import fingerprint_parts, open_inputs, require_output
from jobs.driving.driver import REPAIRS, RunDriver
from jobs.driving.outcome import Outcome, listing_lines
from jobs.driving.redo import rewrite_parts, run_plan
from jobs.progress import counted
from jobs.runners.choice import MAX_LOCAL_IMAGES, runs_locally

#: The time limit for counting the images beforehand.
_COUNT_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """The command as given. `decoding` has the decoding keys that were set, `selection` the images to take.

    `add` adds further INPUTs to a run, `refresh` captions changed images again.
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
    """Caption the pending images of an archive; resumes the run in OUTPUT if there is one.

    Raises `UsageError` before anything is written, `RunLockedError` when another driver has the lock of OUTPUT,
    `UnfinishedError` or `StorageError` when the work stops, and `KeyboardInterrupt` with a message when it is
    interrupted.
    """
    run = _CaptionRun(request, progress_stream)
    with run.locked("Run the same command again to resume."):
        return run.run()


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
            # Refuse kept columns with the name of a table column before a run is created.
            schema_description(self.kept)
            self.info = self.inspect()
            self.record = self._check_record()

    def run(self) -> Outcome:
        self.record = self._check_record()  # again: before the lock, another driver may have changed the run
        index = Index.load(self.layout)
        listed = False
        if index.segments:
            fold(self.layout, index)
            images: int | None = self._count_pending(index)
            if not images:
                index, listed = self._grow(index), True
                images = self._count_pending(index)
                if not images:
                    return self.finish()
        else:
            images = self._count_listed()
        with self.with_runner(images):
            if not index.segments:
                index, listed = self._list(), True
            self._caption(index)
            if not listed:
                index = self._grow(index)
                self._caption(index)
        return self.finish()

    # Checks, in order of cost: nothing is written and no weights are loaded.

    def _open_inputs(self, inputs: Sequence[str], before: RunRecord | None) -> list[Source]:
        return open_inputs(inputs, self.settings, self.layout.root, before)

    def _add_recorded_inputs(self, record: RunRecord | None) -> None:
        """With `--add`, open the run's own INPUTs as well, which need not be given again."""
        if not self.request.add or record is None:
            return
        if not self.request.selection.takes_new_images:
            raise UsageError("--add cannot be used with --limit or --sample, which select a run's images only once.")
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
                    f"OUTPUT {self.layout.root} contains {foreign[0]}, which belongs to no run: readers of the folder "
                    "would mistake it for a part of the table. Choose another OUTPUT with -o."
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
                f"{record.shard_size} images, which cannot be changed. Remove the setting, or choose another OUTPUT."
            )
        self.run_exists = True
        return record

    def _given(self) -> tuple[str, ...]:
        return tuple(source.given for source in self.sources)

    def _kinds(self) -> tuple[str, ...]:
        return tuple(source.kind for source in self.sources)

    def _archive(self) -> tuple[str, ...]:
        return tuple(source.location.uri for source in self.sources)

    # The archive.

    def _count_listed(self) -> int | None:
        """The number of images to caption if it is small and counted within the time limit, else None.

        Raises `InputError` for an INPUT without images.
        """
        deadline = time.monotonic() + _COUNT_SECONDS
        limit = self.request.selection.max_images
        # If the number does not decide the runner, one image per INPUT is enough.
        most = MAX_LOCAL_IMAGES if runs_locally(self.settings.runtime, 1) else 0
        count = 0
        for source in self.sources:
            try:
                found = 0
                for _ in source.entries():
                    found += 1
                    if count + found > most or time.monotonic() > deadline:
                        break
            except StorageError as error:
                raise InputError(f"INPUT cannot be listed: {error.message}") from error
            if not found:
                raise no_images_error(source)
            count += found
        if limit is not None:
            return limit if limit <= most else None
        return count if count <= most and time.monotonic() <= deadline else None

    def _list(self) -> Index:
        """Index the archive, which creates the run in OUTPUT."""
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
            if self.record is not None:  # of a driver that was killed before it committed its index
                self.record = self.record.extend(
                    self.layout, inputs=record.inputs, archive=record.archive, kinds=record.kinds
                )
            else:
                self.record = record.create(self.layout)
        except BaseException:
            pending.discard()
            raise
        self.run_exists = True
        index = pending.commit()
        pa.default_memory_pool().release_unused()  # this calls malloc_trim, which frees memory of Python's objects too
        for line in listing_lines(self.sources):
            self.notify(line)
        if self.request.selection:
            self.notify(f"{counted(index.rows_total, 'image')} selected by {self.request.selection}.")
        self.log_event("indexed", listed=index.rows_total, shards=index.shards_total)
        return index

    def _grow(self, index: Index) -> Index:
        """List the archive again, and add new images to the index."""
        assert self.record is not None, "a run that grows has a record"
        if not (self.request.selection.takes_new_images or self.request.refresh):
            return index
        changed: list[tuple[NDArray[np.int64], pa.Table]] = []
        growth = grow(
            index,
            self.sources,
            shard_size=self.record.shard_size,
            selection=self.request.selection,
            on_changed=(lambda rows, table: changed.append((rows, table))) if self.request.refresh else None,
            added=[given for given in self._given() if given not in self.record.inputs],
            just_captioned=self.tally.shards(START),
        )
        for line in [*listing_lines(self.sources, index.segments), *growth.lines(refreshing=self.request.refresh)]:
            self.notify(line)
        if changed:
            make_plan(self.layout, "refresh", changed_images(index, changed))
        if growth.pending is None:
            return index
        self.record = self.record.extend(
            self.layout, inputs=self._given(), archive=self._archive(), kinds=self._kinds()
        )
        index = growth.pending.commit()
        self.log_event("grown", new=growth.new, changed=growth.changed, vanished=growth.vanished)
        return index

    # The work.

    def _count_pending(self, index: Index) -> int:
        """Count the images to caption, for the first time or again; first rewrites parts whose rows are staged."""
        plan = RedoPlan.load(self.layout)
        redone = plan.images if plan is not None and rewrite_parts(self, plan, index) else 0
        return redone + sum(shard.rows for shard in pending_shards(self.layout, index))

    def _caption(self, index: Index) -> None:
        """Caption and fold until nothing is pending, then caption the rows of a redo plan."""
        for _ in range(1 + REPAIRS):
            pending = pending_shards(self.layout, index)
            if not pending:
                break
            numbers = [shard.number for shard in pending]
            with Folding(index, numbers) as folding:
                self.caption_shards(
                    IndexShardIO(index),
                    numbers,
                    images=sum(shard.rows for shard in pending),
                    total=index.rows_total,
                    on_finished=folding.finished,
                )
            fold(self.layout, index)
        plan = RedoPlan.load(self.layout)
        if plan is not None:
            run_plan(self, plan, index)
