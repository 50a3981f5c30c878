"""Runs an export: checks it, resumes an earlier one, writes its pieces, and counts what happened to every row."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from captioning.errors import InputError, StorageError, UnfinishedError, UsageError
from captioning.run.export.base import ExportOptions, Format
from captioning.run.export.coco import CocoFormat
from captioning.run.export.imagefolder import ImageFolderFormat
from captioning.run.export.names import find_names
from captioning.run.export.table import RunTable
from captioning.run.export.target import Counts
from captioning.run.export.txt import TxtFormat
from captioning.run.export.webdataset import WebDatasetFormat
from captioning.run.index import Index
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.storage import Location

_FORMATS: dict[str, type[Format]] = {
    kind.name: kind for kind in (TxtFormat, ImageFolderFormat, CocoFormat, WebDatasetFormat)
}
FORMATS = tuple(_FORMATS)
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ExportResult:
    """The result of an export.

    `counts` are of the whole export, `before` is the number of rows done when it began, `pending` that of images
    without a row yet. `lines` are to be shown to the user.
    """

    counts: Counts
    before: int
    pending: int
    lines: tuple[str, ...]


def export_table(
    layout: RunLayout,
    kind: str,
    target: Location | None,
    options: ExportOptions,
    *,
    partial: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ExportResult:
    """Export the table of a run to `target` (None: beside the images); resumes an export that is there.

    `progress` is called with the number of rows done and of all rows. Raises `InputError` if there is no run,
    `UsageError` before anything is written, `UnfinishedError` for an incomplete table unless `partial` is set, and
    `StorageError`.
    """
    table, pending = _open(layout, partial)
    export = _make(kind, table, target, options)
    _begin(export, layout)
    export.names = find_names(table.ids())
    counts, before = _write_pieces(export, pending, progress)
    counts += export.finish() or Counts()
    if export.rows_per_piece is None and options.errors == "skip":
        rows = table.index.rows_total - pending
        counts += Counts(errors=rows - counts.written)
    export.target.sweep()
    return ExportResult(counts, before, pending, tuple(export.lines()))


def _open(layout: RunLayout, partial: bool) -> tuple[RunTable, int]:
    """The run's table, and the number of images without a row in it."""
    if not layout.exists():
        raise InputError(f"There is no run in {layout.root} (it has no _run/run.json). Pass a run's OUTPUT.")
    index = Index.load(layout)
    present = set(layout.parts())
    missing = [part for part in index.ranges() if part not in present]
    pending = sum(index.shard(part.last).stop - index.shard(part.first).start for part in missing)
    if not index.segments or (missing and not partial):
        raise UnfinishedError(
            f"The run in {layout.root} is not finished: {pending:,} of {index.rows_total:,} images are not in its "
            "table yet. Run its `caption` command again first, or pass --partial to export what is there."
        )
    return RunTable(layout, index), pending


def _make(kind: str, table: RunTable, given: Location | None, options: ExportOptions) -> Format:
    if kind not in _FORMATS:
        raise UsageError(f"Unknown format {kind!r}. Use one of: {', '.join(FORMATS)}.")
    if options.beside != (given is None):
        raise UsageError(
            "Pass the export's folder or URI with -o."
            if given is None
            else "-o and --beside cannot be combined: pass one of them."
        )
    if options.beside and kind != "txt":
        raise UsageError(f"--beside is for txt only: pass a folder or URI for {kind} with -o.")
    root = table.layout.root
    if given is not None and f"{given.path}/".startswith(f"{root.path}/"):
        raise UsageError(f"The export cannot go into {given}, inside the run's OUTPUT. Choose another place with -o.")
    made = _FORMATS[kind](table, given or root.parent, options)
    made.check()
    return made


def _begin(export: Format, layout: RunLayout) -> None:
    """Record what is exported, or check that the existing export is of the same run and options."""
    run = RunRecord.read(layout)
    assert run is not None, "the run exists"
    mine: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        "format": export.name,
        "options": export.options.fixed(),
        "run": {"created": run.created, "fingerprint": run.fingerprint},
    }
    record = export.target.record
    if record.info() is None:
        if not export.options.overwrite:
            export.check_new()
    elif (there := _read(record)) != mine:
        different = [key for key in mine if there.get(key) != mine[key]]
        raise UsageError(
            f"{export.target.root} holds a different export (different {', '.join(different)}). Choose another "
            "place with -o, or remove that export first."
        )
    else:
        return
    try:
        record.write_bytes((json.dumps(mine, indent=1) + "\n").encode())
    except StorageError as error:
        raise UsageError(f"The export cannot be written: {error.message}") from error


def _read(record: Location) -> dict[str, Any]:
    try:
        values = json.loads(record.read_bytes())
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _write_pieces(export: Format, pending: int, progress: Callable[[int, int], None] | None) -> tuple[Counts, int]:
    """Write the pieces that are not done; the counts of all pieces, and the rows of those done before."""
    totals, before, seen = Counts(), 0, 0
    if export.rows_per_piece is None:
        return totals, before
    rows = export.table.index.rows_total - pending
    done = export.target.done()
    for part, pieces in export.table.pieces(export.rows_per_piece):
        version = export.table.version(part)
        if version is None:
            continue
        version = export.names.version(version)
        for piece in pieces:
            seen += piece.stop - piece.start
            noted = done.get(piece.number)
            if noted is not None and noted[0] == version:
                totals += noted[1]
                before += piece.stop - piece.start
                continue
            counts = export.write_piece(piece, export.table.rows(piece))
            totals += counts
            # An incomplete piece is written again the next time.
            if not counts.missing and not counts.kept:
                if not export.synced:
                    export.target.sync()
                export.target.mark_done(piece.number, version, counts, noted)
            if progress is not None:
                progress(seen, rows)
    return totals, before
