"""Proves a run's table against its index: one row an image, no id twice, nothing foreign.

Works part by part in bounded memory, from the files alone. Knows nothing of models.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from captioning.errors import InputError, StorageError
from captioning.run.digests import DigestSet, digests
from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout
from captioning.run.table import read_part

_EXAMPLES = 3


@dataclass(frozen=True)
class Verdict:
    """What was found. `inputs` images in the index, `rows` in the table, `errors` rows by error class."""

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
        """Note the ids that something is wrong with, if there are any."""
        if ids:
            shown = ", ".join(ids[:_EXAMPLES]) + (" …" if len(ids) > _EXAMPLES else "")
            self.problems.append(f"{where}: {len(ids):,} {what}: {shown}")


def verify(layout: RunLayout) -> Verdict:
    """Check the table of a run. Raises `InputError` when there is no run, `StorageError` when it cannot be read."""
    if not layout.exists():
        raise InputError(f"There is no run in {layout.root} (it has no _run/run.json). Give a run's OUTPUT.")
    index = Index.load(layout)
    found = _Findings()
    if not index.segments:
        found.problems.append("The run has no index yet: it was stopped while listing the archive. Run it again.")
    ranges = index.ranges()
    present = set(layout.parts())
    _check_names(layout, ranges, found)
    ids_seen = DigestSet()
    for part in ranges:
        try:
            ids = index.range_ids(part)
        except StorageError as error:
            found.problems.append(error.message)
            continue
        rows = sum(index.shard(number).rows for number in part.numbers)
        if len(ids) != rows:
            found.problems.append(f"The index of {part.name} has {len(ids):,} rows where there should be {rows:,}.")
        new = ids_seen.add(digests(ids))
        found.add("index", "images listed twice", [name for name, fresh in zip(ids, new, strict=True) if not fresh])
        if part in present:
            _check_part(layout, part, ids, found)
        else:
            found.problems.append(f"{part.name} is not there: {len(ids):,} images have no row yet. Run again to go on.")
    return Verdict(not found.problems, index.rows_total, found.rows, tuple(found.problems), dict(found.errors))


def _check_names(layout: RunLayout, ranges: Sequence[PartRange], found: _Findings) -> None:
    wanted = {part.name for part in ranges}
    for name in layout.root.names():
        if name.endswith(".parquet") and name not in wanted:
            found.problems.append(f"{name} is no part of this table, but readers of the folder would take it for one.")


def _check_part(layout: RunLayout, part: PartRange, ids: Sequence[str], found: _Findings) -> None:
    try:
        table = read_part(layout, part)
    except StorageError as error:
        found.problems.append(error.message)
        return
    found.rows += table.num_rows
    rows = Counter(table["image_id"].to_pylist())
    wanted = set(ids)
    found.add(part.name, "images without a row", [name for name in ids if name not in rows])
    found.add(part.name, "images with more than one row", [str(name) for name, count in rows.items() if count > 1])
    found.add(part.name, "rows of images that do not belong here", [str(name) for name in rows if name not in wanted])
    _check_values(part, table, found)


def _check_values(part: PartRange, table: pa.Table, found: _Findings) -> None:
    """A row is either a caption with its score, or an error with its class; counts the errors."""
    ok = pc.equal(table["status"], "ok")
    error = pc.equal(table["status"], "error")
    captioned = pc.and_(
        pc.is_valid(table["caption"]), pc.and_(pc.is_valid(table["score"]), pc.is_null(table["error_class"]))
    )
    failed = pc.and_(pc.is_null(table["caption"]), pc.is_valid(table["error_class"]))
    sound = pc.or_(pc.and_(ok, captioned), pc.and_(error, failed))
    wrong = table.filter(pc.invert(pc.fill_null(sound, False)))
    found.add(
        part.name, "rows that are neither a caption nor an error", [str(i) for i in wrong["image_id"].to_pylist()]
    )
    classes = table.filter(pc.fill_null(error, False))["error_class"].to_pylist()
    found.errors.update(str(name) for name in classes)
