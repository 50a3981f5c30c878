"""The caption table: its columns and rows, and reading and writing its parts.

`staging` decides when a part is written.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.errors import InputError, StorageError
from captioning.redaction import without_secrets
from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout
from captioning.run.sources import Entry
from captioning.storage import Location

#: An element of `alternatives`.
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

#: Rows per row group, which are in memory at once, and bytes buffered per column.
#: (A single row group would make a part 2 to 6% smaller.)
GROUP_ROWS, _READ_AHEAD = 4096, 1 << 20
_MAX_MESSAGE_LENGTH = 1000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image's row of the table.

    `score` is the mean log-probability per token, `num_tokens` counts the end token, `alternatives` are
    (caption, score), best first and included; `width` and `height` are in pixels, as decoded.
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


def table_schema(kept: pa.Schema | None = None) -> pa.Schema:
    """`SCHEMA` followed by the archive's kept columns (`Index.kept_schema`).

    Raises `InputError` when one of these has the name of a column of `SCHEMA`.
    """
    kept = kept if kept is not None else pa.schema([])
    for name in kept.names:
        if name in SCHEMA.names:
            raise InputError(
                f"input.keep_columns names {name!r}, but the caption table has its own column of that name. "
                "Rename it in the archive, or leave it out."
            )
    return pa.schema([*SCHEMA, *(pa.field(field.name, field.type) for field in kept)])


def schema_description(kept: pa.Schema | None = None) -> dict[str, str]:
    """The columns and their types as text, which are part of a run's fingerprint."""
    return {field.name: str(field.type) for field in table_schema(kept)}


def rows_to_table(rows: Sequence[Row], kept: pa.Table | None = None) -> pa.Table:
    """The rows as a table of `SCHEMA`, in order, followed by the columns of `kept` (row by row)."""
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(Row)}
    columns["alternatives"] = [
        [{"caption": caption, "score": score} for caption, score in row.alternatives] for row in rows
    ]
    columns["error_message"] = [_clean(row.error_message) for row in rows]
    table = pa.Table.from_pydict(columns, schema=SCHEMA)
    if kept is not None:
        for name in kept.schema.names:
            table = table.append_column(name, kept[name])
    return table


def folded_ranges(layout: RunLayout, index: Index) -> list[PartRange]:
    """The ranges of the index whose part exists."""
    present = set(layout.parts())
    return [part for part in index.ranges() if part in present]


def read_table(layout: RunLayout, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The table's rows in batches of a few thousand, in the order of the parts. Raises `StorageError`.

    By default all columns: those of `SCHEMA`, then the kept ones.
    """
    for part in layout.parts():
        yield from part_batches(layout, part, columns)


def part_batches(layout: RunLayout, part: PartRange, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of one part in batches of a few thousand, one of which is in memory at a time.

    By default all columns. Raises `StorageError`, also when the file is damaged or has other columns.
    """
    location = layout.part(part)
    # Remotely one GET with retries; a local file is read on demand.
    file = location.open_read() if location.is_local else io.BytesIO(location.read_bytes())
    with file:
        try:
            parquet = pq.ParquetFile(file, buffer_size=_READ_AHEAD, pre_buffer=False, page_checksum_verification=True)
            _check_columns(location, parquet.schema_arrow)
            # Columns one after another: threads are no faster here, and each keeps memory of its own.
            names = list(columns or parquet.schema_arrow.names)
            yield from parquet.iter_batches(GROUP_ROWS, columns=names, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError("storage", f"{location} is damaged: {error}") from error


def read_part(layout: RunLayout, part: PartRange) -> pa.Table:
    """All rows of one part. Raises `StorageError` as `part_batches` does."""
    batches = list(part_batches(layout, part))
    return pa.Table.from_batches(batches, batches[0].schema if batches else SCHEMA)


def _check_columns(location: Location, schema: pa.Schema) -> None:
    if schema.names[: len(SCHEMA)] != SCHEMA.names or schema.types[: len(SCHEMA)] != SCHEMA.types:
        raise StorageError("storage", f"{location} does not have the columns of a caption table.")


def to_parquet(table: pa.Table, *, row_group_size: int = GROUP_ROWS) -> bytes:
    """The table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    with parquet_writer(buffer, table.schema) as writer:
        writer.write_table(table, row_group_size=row_group_size)
    return buffer.getvalue()


def parquet_writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer, also a context manager, with the compression and checksums of a run's Parquet files."""
    return pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)


def from_parquet(data: bytes) -> pa.Table:
    """The table in the bytes of a Parquet file. Raises `pa.ArrowInvalid` or `OSError` if they are not one."""
    return pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)


def _clean(message: str | None) -> str | None:
    """A message as valid Unicode, of bounded length and without credentials."""
    if message is None:
        return None
    text = without_secrets(message.encode("utf-8", "backslashreplace").decode("utf-8"))
    return text if len(text) <= _MAX_MESSAGE_LENGTH else text[: _MAX_MESSAGE_LENGTH - 1] + "…"
