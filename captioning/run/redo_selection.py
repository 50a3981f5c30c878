"""Selects the rows to caption again: those that failed, or those whose images changed in the archive.

Both functions return the input of `redo.make_plan`: for each part, a table of images with their `shard` and
the columns of the index, as the files are now.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.errors import StorageError
from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout
from captioning.run.segment import table_to_entries
from captioning.run.sources import Entry
from captioning.run.table import folded_ranges, part_batches
from captioning.storage import Location, StorageSettings

#: Concurrent look-ups of files.
_PARALLEL = 16


def failed_images(
    layout: RunLayout, index: Index, classes: Sequence[str], storage: StorageSettings
) -> Iterator[tuple[PartRange, pa.Table]]:
    """The images of the error rows of these classes (() for all), with their files' current size and version.

    Raises `StorageError`.
    """
    for part in folded_ranges(layout, index):
        ids: list[pa.Array] = []
        for batch in part_batches(layout, part, ["image_id", "status", "error_class"]):
            wanted = pc.equal(batch["status"], "error")
            if classes:
                wanted = pc.and_(wanted, pc.is_in(batch["error_class"], pa.array(classes, pa.string())))
            ids.append(batch.filter(wanted)["image_id"])
        if not any(map(len, ids)):
            continue
        rows = index.range_table(part)
        rows = rows.add_column(0, "shard", pa.array(index.shard_numbers(part), pa.int64()))
        rows = rows.filter(pc.is_in(rows["image_id"], pa.concat_arrays(ids)))
        yield part, _with_current_versions(rows, storage)


def changed_images(
    index: Index, found: Iterable[tuple[NDArray[np.int64], pa.Table]]
) -> list[tuple[PartRange, pa.Table]]:
    """The images that `growth.grow` found changed, given as rows of the index and tables of their current entries."""
    parts: dict[PartRange, list[pa.Table]] = {}
    for rows, table in found:
        numbers = [index.shard_of_row(row).number for row in rows.tolist()]
        numbered = table.add_column(0, "shard", pa.array(numbers, pa.int64()))
        ranges = np.array([index.range_of(number).first for number in numbers])
        for first in np.unique(ranges).tolist():
            parts.setdefault(index.range_of(first), []).append(numbered.filter(pa.array(ranges == first)))
    return [(part, pa.concat_tables(tables)) for part, tables in sorted(parts.items())]


def _with_current_versions(rows: pa.Table, storage: StorageSettings) -> pa.Table:
    """The rows with the current size and version of images that are files of their own.

    A file that is gone, and one without a version in the listing, keep their old values.
    """
    with ThreadPoolExecutor(_PARALLEL) as pool:
        now = list(pool.map(lambda entry: _current_version(entry, storage), table_to_entries(rows)))
    for number, name in enumerate(("size_bytes", "version")):
        field = rows.schema.field(name)
        rows = rows.set_column(
            rows.schema.get_field_index(name), field, pa.array([each[number] for each in now], field.type)
        )
    return rows


def _current_version(entry: Entry, storage: StorageSettings) -> tuple[int | None, str]:
    before = entry.size_bytes, entry.version
    if entry.tar is not None or entry.table is not None or not entry.version:
        return before
    try:
        info = Location.from_uri(entry.uri, storage).info()
    except StorageError:
        return before
    return before if info is None else (info.size, info.version)
