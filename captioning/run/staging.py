"""Staging of finished shards, and folding of staged shards into parts of the table.

A shard's rows are staged under the shard's own name, so that a retry overwrites them. A part is written when
every shard of its range is staged, in one atomic step and only if it does not exist; staged files in the range
of an existing part are leftovers, deleted and never folded. So whatever is killed, and however many drivers
fold, no row is duplicated and none is lost.
"""

import io
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from captioning.errors import StorageError
from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout, Shard
from captioning.run.table import (
    GROUP_ROWS,
    Row,
    folded_ranges,
    from_parquet,
    parquet_writer,
    rows_to_table,
    table_schema,
    to_parquet,
)
from captioning.storage import Location

#: Concurrent reads and deletions of staged files.
_PARALLEL = 8
#: The age of a temporary file, in nanoseconds, at which its writer is certainly gone.
_ABANDONED_NS = 24 * 3600 * 10**9


@dataclass(frozen=True)
class FoldResult:
    """The result of `fold`: the parts written, and the shards whose staged file was damaged.

    Damaged files are deleted, so that their shards are pending again.
    """

    folded: tuple[PartRange, ...]
    damaged: tuple[int, ...]


def write_staged(layout: RunLayout, shard: Shard, rows: Sequence[Row], kept: pa.Table | None = None) -> None:
    """Stage the rows of a finished shard, in one atomic step; `kept` is its `Index.kept`. Raises `StorageError`."""
    assert len(rows) == shard.rows, f"shard {shard.number} has {shard.rows} images, not {len(rows)}"
    assert len({row.image_id for row in rows}) == len(rows), f"an image comes twice in shard {shard.number}"
    layout.staged(shard.number).write_bytes(to_parquet(rows_to_table(rows, kept)), temp=layout.tmp_dir)


def staged_shards(layout: RunLayout) -> set[int]:
    """The numbers of the shards with a staged file."""
    return set(layout.staged_numbers())


def pending_shards(layout: RunLayout, index: Index) -> list[Shard]:
    """The shards that are neither staged nor in a part, in order."""
    # List staged files first: a shard that another driver folds in between is then found in its part.
    done = staged_shards(layout)
    for part in folded_ranges(layout, index):
        done.update(part.numbers)
    return [shard for shard in index.shards() if shard.number not in done]


def fold(layout: RunLayout, index: Index) -> FoldResult:
    """Write every part whose shards are all staged, and delete the staged files of existing parts.

    Safe to call at any time, by several drivers at once, and again after a crash. Raises `StorageError`.
    """
    staged = staged_shards(layout)
    present = set(layout.parts())
    folded: list[PartRange] = []
    damaged: list[int] = []
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for part in index.ranges():
            leftovers = [number for number in part.numbers if number in staged]
            if part in present:
                _delete_staged(layout, leftovers, pool)
            elif len(leftovers) == len(part.numbers):
                result = _fold_range(layout, index, part, pool)
                folded += result.folded
                damaged += result.damaged
    _sweep_tmp(layout)
    return FoldResult(tuple(folded), tuple(damaged))


def fold_range(layout: RunLayout, index: Index, part: PartRange) -> FoldResult:
    """As `fold` for one part, all of whose shards have been staged; lists no folder."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return _fold_range(layout, index, part, pool)


def _fold_range(layout: RunLayout, index: Index, part: PartRange, pool: ThreadPoolExecutor) -> FoldResult:
    """Write a part from its staged shards and delete these; does not write it if one of them is unusable.

    Memory is bounded by the rows of a row group, or of the shards that are read at once.
    """
    schema = table_schema(index.kept_schema)
    batch_size = max(_PARALLEL, GROUP_ROWS // index.shard(part.first).rows)
    damaged: list[int] = []
    gone = False
    buffer = io.BytesIO()
    with parquet_writer(buffer, schema) as writer:
        for start in range(0, len(part.numbers), batch_size):
            numbers = part.numbers[start : start + batch_size]
            tables = []
            # Read in parallel but decoded in this thread: every thread that decodes keeps memory of its own.
            for number, data in zip(
                numbers, pool.map(lambda number: _staged_bytes(layout, number), numbers), strict=True
            ):
                table = _staged_rows(data, schema, index.shard(number)) if data is not None else None
                if table is not None:
                    tables.append(table)
                elif data is not None:
                    damaged.append(number)
                else:
                    gone = True  # folded and deleted by another driver
            if not damaged and not gone:
                writer.write_table(pa.concat_tables(tables), row_group_size=GROUP_ROWS)
    _delete_staged(layout, damaged, pool)
    if damaged or gone:
        return FoldResult((), tuple(damaged))
    written = layout.part(part).create_bytes(buffer.getvalue(), temp=layout.tmp_dir)
    _delete_staged(layout, part.numbers, pool)
    return FoldResult((part,) if written else (), ())


def _delete_staged(layout: RunLayout, numbers: Iterable[int], pool: ThreadPoolExecutor) -> None:
    list(pool.map(Location.delete, [layout.staged(number) for number in numbers]))


def _staged_bytes(layout: RunLayout, number: int) -> bytes | None:
    """The content of a shard's staged file; None when it is gone."""
    try:
        return layout.staged(number).read_bytes()
    except StorageError as error:
        if error.error_class == "missing":
            return None
        raise


def _staged_rows(data: bytes, schema: pa.Schema, shard: Shard) -> pa.Table | None:
    """The rows in a shard's staged file; None when it is damaged."""
    try:
        table = from_parquet(data)
    except (pa.ArrowInvalid, OSError):
        return None
    return table if table.schema.equals(schema) and table.num_rows == shard.rows else None


def _sweep_tmp(layout: RunLayout) -> None:
    """Delete the temporary files of killed writers, which are older than a day. Only local OUTPUTs have any."""
    if not layout.root.is_local:
        return
    for name in layout.tmp_dir.names():
        file = layout.tmp_dir / name
        info = file.info()
        if info is not None and time.time_ns() - int(info.version) > _ABANDONED_NS:
            file.delete()
