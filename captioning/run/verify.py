"""Checks a run's table against its index: one row per image, no repeated id, no foreign row.

Streams the table part by part in bounded memory; eight bytes per image are kept to find repeated ids, in
temporary files beyond some millions of images.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from captioning.errors import InputError, StorageError
from captioning.run.duplicates import DuplicateFinder, is_in
from captioning.run.hashing import UInt64Array
from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout
from captioning.run.table import SCHEMA, part_batches

_EXAMPLES = 3


@dataclass(frozen=True)
class Verdict:
    """The result: `inputs` images in the index, `rows` in the table, `errors` rows by error class."""

    ok: bool
    inputs: int
    rows: int
    problems: tuple[str, ...]
    errors: dict[str, int]


@dataclass
class _Findings:
    rows: int = 0
    problems: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, what: str, ids: Sequence[str]) -> None:
        """Add a problem about these ids, if there are any."""
        if ids:
            shown = ", ".join(ids[:_EXAMPLES]) + (" …" if len(ids) > _EXAMPLES else "")
            self.problems.append(f"{where}: {what} ({len(ids):,}): {shown}")


def verify(layout: RunLayout) -> Verdict:
    """Check the table of a run. Raises `InputError` when there is no run, `StorageError` when it cannot be read."""
    if not layout.exists():
        raise InputError(f"There is no run in {layout.root} (it has no _run/run.json). Pass a run's OUTPUT.")
    index = Index.load(layout)
    found = _Findings()
    if not index.segments:
        found.problems.append(
            "The run has no index yet: it was stopped while listing the archive. Run the `caption` command again."
        )
    ranges = index.ranges()
    present = set(layout.parts())
    _check_names(layout, ranges, found)
    repeats = DuplicateFinder()
    for part in ranges:
        try:
            ids = index.range_ids(part)
        except StorageError as error:
            found.problems.append(error.message)
            continue
        rows = index.shard(part.last).stop - index.shard(part.first).start
        if len(ids) != rows:
            found.problems.append(f"The index of {part.name} has {len(ids):,} rows where there should be {rows:,}.")
        repeats.add(ids)
        if part in present:
            _check_part(layout, part, ids, index.kept_schema, found)
        else:
            found.problems.append(
                f"{part.name} does not exist: {len(ids):,} images have no row yet. Run the `caption` command again."
            )
    candidates = repeats.candidates()
    if len(candidates):
        _check_repeats(index, ranges, candidates, found)
    return Verdict(not found.problems, index.rows_total, found.rows, tuple(found.problems), dict(found.errors))


def _check_repeats(index: Index, ranges: Sequence[PartRange], candidates: UInt64Array, found: _Findings) -> None:
    """Check the candidates for repeated ids in the index by the ids themselves."""
    counts: Counter[str] = Counter()
    for part in ranges:
        with suppress(StorageError):  # reported before
            ids = index.range_ids(part)
            counts.update(ids.filter(pa.array(is_in(ids, candidates))).to_pylist())
    found.add("index", "images listed more than once", [name for name, count in counts.items() if count > 1])


def _check_names(layout: RunLayout, ranges: Sequence[PartRange], found: _Findings) -> None:
    wanted = {part.name for part in ranges}
    for name in layout.root.names():
        if name.endswith(".parquet") and name not in wanted:
            found.problems.append(
                f"{name} is not part of this table, but readers of the folder would treat it as such. "
                "Move it elsewhere."
            )


def _check_part(layout: RunLayout, part: PartRange, ids: pa.ChunkedArray, kept: pa.Schema, found: _Findings) -> None:
    """Compare the rows of a part with the `ids` of the index, and its last columns with the `kept` ones."""
    rows: list[pa.Array] = []
    wrong: list[str] = []
    errors: Counter[str] = Counter()
    others = False
    try:
        for batch in part_batches(layout, part):
            rows.append(batch["image_id"])
            if batch.schema.names[len(SCHEMA) :] != kept.names or batch.schema.types[len(SCHEMA) :] != kept.types:
                others = True
            wrong += _check_values(batch, errors)
    except StorageError as error:
        found.problems.append(error.message)
        return
    if others:
        found.problems.append(f"{part.name}: its columns differ from those kept from the archive.")
    names = pa.chunked_array(rows, pa.string())
    found.rows += len(names)
    found.errors.update(errors)
    # Folded parts have the order of the index; only others are compared id by id.
    if not names.equals(ids):
        _compare_ids(part, ids.to_pylist(), names.to_pylist(), found)
    found.add(part.name, "rows that are neither a caption nor an error", wrong)


def _compare_ids(part: PartRange, ids: Sequence[str], names: Sequence[str], found: _Findings) -> None:
    rows, wanted = Counter(names), set(ids)
    found.add(part.name, "images without a row", [name for name in ids if name not in rows])
    found.add(part.name, "images with more than one row", [str(name) for name, count in rows.items() if count > 1])
    found.add(part.name, "rows of images that do not belong here", [str(name) for name in rows if name not in wanted])


def _check_values(batch: pa.RecordBatch, errors: Counter[str]) -> list[str]:
    """The ids of rows that are neither a caption with a score nor an error with a class; counts the errors."""
    ok = pc.equal(batch["status"], "ok")
    error = pc.equal(batch["status"], "error")
    captioned = pc.and_(
        pc.is_valid(batch["caption"]), pc.and_(pc.is_valid(batch["score"]), pc.is_null(batch["error_class"]))
    )
    failed = pc.and_(pc.is_null(batch["caption"]), pc.is_valid(batch["error_class"]))
    valid = pc.fill_null(pc.or_(pc.and_(ok, captioned), pc.and_(error, failed)), False)
    for each in pc.value_counts(batch["error_class"].filter(pc.fill_null(error, False))).to_pylist():
        errors[str(each["values"])] += each["counts"]
    return [str(name) for name in batch["image_id"].filter(pc.invert(valid)).to_pylist()]
