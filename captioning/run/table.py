"""The caption table: its columns, the staged files of single shards, and folding them into parts.

A shard's result is staged under the shard's own name, so that a retry overwrites itself. A part
is written when every shard of its range is staged, in one atomic step and only if it is not
there; staged files inside an existing part's range are leftovers, deleted and never folded. So
whatever is killed, and however many drivers fold, no row comes twice and none is lost. Knows
nothing of how captions are made.
"""

import io
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.errors import InputError, StorageError
from captioning.redaction import without_secrets
from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout, Shard
from captioning.run.sources import Entry
from captioning.storage import Location

#: One entry of `alternatives`.
ALTERNATIVE = pa.struct([pa.field("caption", pa.string()), pa.field("score", pa.float32())])

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("num_tokens", pa.int16()),
        pa.field("alternatives", pa.list_(ALTERNATIVE)),
        pa.field("status", pa.string()),
        pa.field("error_class", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field("model", pa.string()),
    ]
)

#: Files of an object store are read and deleted this many at a time.
_PARALLEL = 8
#: Rows of a part that are in memory at once, and bytes of each of its columns.
_BATCH_ROWS, _READ_AHEAD = 4096, 1 << 20
_LONGEST_MESSAGE = 1000

#: The age of a temporary file, in nanoseconds, at which its writer is surely gone.
_ABANDONED_NS = 24 * 3600 * 10**9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image's row of the table.

    `score` is the mean log-probability a token, `num_tokens` counts the end token, `alternatives`
    are (caption, score), best first and included; `width` and `height` are pixels as decoded.
    """

    image_id: str
    uri: str
    caption: str | None
    score: float | None
    num_tokens: int | None
    alternatives: tuple[tuple[str, float], ...]
    status: Literal["ok", "error"] = "ok"
    error_class: str | None = None
    error_message: str | None = None
    width: int | None
    height: int | None
    size_bytes: int | None
    model: str

    @classmethod
    def failed(
        cls,
        entry: Entry,
        error_class: str,
        message: str,
        *,
        model: str,
        width: int | None = None,
        height: int | None = None,
        size_bytes: int | None = None,
    ) -> "Row":
        """The row of an image that could not be captioned."""
        return cls(
            image_id=entry.image_id,
            uri=entry.uri,
            caption=None,
            score=None,
            num_tokens=None,
            alternatives=(),
            status="error",
            error_class=error_class,
            error_message=message,
            width=width,
            height=height,
            size_bytes=entry.size_bytes if size_bytes is None else size_bytes,
            model=model,
        )


@dataclass(frozen=True)
class FoldResult:
    """What `fold` did: parts written, and shards whose staged file could not be used.

    Such a file was deleted, so that its shard is pending again.
    """

    folded: tuple[PartRange, ...]
    damaged: tuple[int, ...]


def table_schema(kept: pa.Schema | None = None) -> pa.Schema:
    """`SCHEMA` and behind it the columns that are kept of the archive (`Index.kept_schema`).

    Raises `InputError` when one of these has the name of a column of the table.
    """
    kept = kept if kept is not None else pa.schema([])
    for name in kept.names:
        if name in SCHEMA.names:
            raise InputError(
                f"input.keep_columns names {name!r}, but the caption table has a column of that name itself. "
                "Rename it in the archive, or leave it out."
            )
    return pa.schema([*SCHEMA, *(pa.field(field.name, field.type) for field in kept)])


def schema_description(kept: pa.Schema | None = None) -> dict[str, str]:
    """Columns and their types as text: the schema's share of a run's fingerprint."""
    return {field.name: str(field.type) for field in table_schema(kept)}


def rows_to_table(rows: Sequence[Row], kept: pa.Table | None = None) -> pa.Table:
    """The rows as a table of `SCHEMA`, in their order, and behind it the columns of `kept`, a row each."""
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(Row)}
    columns["alternatives"] = [
        [{"caption": caption, "score": score} for caption, score in row.alternatives] for row in rows
    ]
    columns["error_message"] = [_plain(row.error_message) for row in rows]
    table = pa.Table.from_pydict(columns, schema=SCHEMA)
    if kept is not None:
        for name in kept.schema.names:
            table = table.append_column(name, kept[name])
    return table


def write_staged(layout: RunLayout, shard: Shard, rows: Sequence[Row], kept: pa.Table | None = None) -> None:
    """Stage the rows of a finished shard, in one atomic step; `kept` is `Index.kept` of it. Raises `StorageError`."""
    assert len(rows) == shard.rows, f"shard {shard.number} has {shard.rows} images, not {len(rows)}"
    assert len({row.image_id for row in rows}) == len(rows), f"an image comes twice in shard {shard.number}"
    layout.staged(shard.number).write_bytes(to_parquet(rows_to_table(rows, kept)), temp=layout.tmp_dir)


def staged_shards(layout: RunLayout) -> set[int]:
    """The numbers of the shards that have a staged file."""
    return set(layout.staged_numbers())


def folded_ranges(layout: RunLayout, index: Index) -> list[PartRange]:
    """The ranges of the index whose part is in the root."""
    present = set(layout.parts())
    return [part for part in index.ranges() if part in present]


def pending_shards(layout: RunLayout, index: Index) -> list[Shard]:
    """The shards that are neither staged nor in a part, in order: what there is to do."""
    # Staged files are listed first: a shard that another driver folds in between is then seen in its part.
    done = staged_shards(layout)
    for part in folded_ranges(layout, index):
        done.update(part.numbers)
    return [shard for shard in index.shards() if shard.number not in done]


def fold(layout: RunLayout, index: Index) -> FoldResult:
    """Write every part whose shards are all staged, and delete the staged files of existing parts.

    Safe to call at any time, by several drivers at once, and again after a crash. Raises
    `StorageError`.
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
    """Write one part, all of whose shards have been staged; lists nothing. Otherwise as `fold`."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return _fold_range(layout, index, part, pool)


def _fold_range(layout: RunLayout, index: Index, part: PartRange, pool: ThreadPoolExecutor) -> FoldResult:
    """Write a part from its staged shards and delete these; nothing when one of them cannot be used."""
    schema = table_schema(index.kept_schema)
    found = list(pool.map(lambda number: _read_staged(layout, schema, index.shard(number)), part.numbers))
    damaged = [number for number, table in zip(part.numbers, found, strict=True) if table is False]
    _delete_staged(layout, damaged, pool)
    tables = [table for table in found if isinstance(table, pa.Table)]
    # A file that is gone was folded and deleted by another driver.
    if len(tables) < len(found):
        return FoldResult((), tuple(damaged))
    written = layout.part(part).create_bytes(to_parquet(pa.concat_tables(tables)), temp=layout.tmp_dir)
    _delete_staged(layout, part.numbers, pool)
    return FoldResult((part,) if written else (), ())


def _delete_staged(layout: RunLayout, numbers: Iterable[int], pool: ThreadPoolExecutor) -> None:
    list(pool.map(Location.delete, [layout.staged(number) for number in numbers]))


def read_table(layout: RunLayout, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The table's rows, a few thousand at a time, in the order of the parts. Raises `StorageError`.

    Without `columns` all of them: those of `SCHEMA`, then those kept of the archive.
    """
    for part in layout.parts():
        yield from part_batches(layout, part, columns)


def part_batches(layout: RunLayout, part: PartRange, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """One part of the table, a few thousand rows at a time, which is all that is in memory of it.

    Without `columns` all of them. Raises `StorageError`, also when the file is damaged or no part of this table.
    """
    location = layout.part(part)
    # One GET that is tried again where it fails; a local file is read as it is needed.
    file = location.open_read() if location.is_local else io.BytesIO(location.read_bytes())
    with file:
        try:
            parquet = pq.ParquetFile(file, buffer_size=_READ_AHEAD, pre_buffer=False, page_checksum_verification=True)
            _check_columns(location, parquet.schema_arrow)
            # One column after another: a thread for each is no sooner done, and each keeps memory of its own.
            names = list(columns or parquet.schema_arrow.names)
            yield from parquet.iter_batches(_BATCH_ROWS, columns=names, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError("storage", f"{location} is damaged: {error}") from error


def read_part(layout: RunLayout, part: PartRange) -> pa.Table:
    """The whole of one part of the table. Raises `StorageError` as `part_batches` does."""
    batches = list(part_batches(layout, part))
    return pa.Table.from_batches(batches, batches[0].schema if batches else SCHEMA)


def _check_columns(location: Location, schema: pa.Schema) -> None:
    if schema.names[: len(SCHEMA)] != SCHEMA.names or schema.types[: len(SCHEMA)] != SCHEMA.types:
        raise StorageError("storage", f"{location} has other columns than a caption table.")


def _read_staged(layout: RunLayout, schema: pa.Schema, shard: Shard) -> pa.Table | Literal[False] | None:
    """The staged rows of a shard; None when the file is gone, False when it cannot be used."""
    try:
        table = from_parquet(layout.staged(shard.number).read_bytes())
    except StorageError as error:
        if error.error_class == "missing":
            return None
        raise
    except (pa.ArrowInvalid, OSError):
        return False
    return table if table.schema.equals(schema) and table.num_rows == shard.rows else False


def _sweep_tmp(layout: RunLayout) -> None:
    """Delete temporary files that killed writers left. Only locally are there any; none is written for a day."""
    if not layout.root.is_local:
        return
    for name in layout.tmp_dir.names():
        file = layout.tmp_dir / name
        info = file.info()
        if info is not None and time.time_ns() - int(info.version) > _ABANDONED_NS:
            file.delete()


def to_parquet(table: pa.Table, *, row_group_size: int = 65536) -> bytes:
    """The table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size, write_page_checksum=True)
    return buffer.getvalue()


def from_parquet(data: bytes) -> pa.Table:
    """The table in the bytes of a Parquet file. Raises `pa.ArrowInvalid` or `OSError` for what is none."""
    return pq.ParquetFile(io.BytesIO(data)).read()


def _plain(message: str | None) -> str | None:
    """A message as valid Unicode, of bounded length and without credentials."""
    if message is None:
        return None
    text = without_secrets(message.encode("utf-8", "backslashreplace").decode("utf-8"))
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"
