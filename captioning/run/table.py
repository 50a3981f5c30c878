"""The caption table: its columns, its rows, and its parts as they are written and read.

Knows nothing of how captions are made, nor of when a part is written (`staging`).
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

#: Rows of a part that are in memory at once, also while it is written, and bytes of each of its columns.
#: A row group of all rows is 2 to 6% smaller.
GROUP_ROWS, _READ_AHEAD = 4096, 1 << 20
_LONGEST_MESSAGE = 1000


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


def folded_ranges(layout: RunLayout, index: Index) -> list[PartRange]:
    """The ranges of the index whose part is in the root."""
    present = set(layout.parts())
    return [part for part in index.ranges() if part in present]


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
            yield from parquet.iter_batches(GROUP_ROWS, columns=names, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError("storage", f"{location} is damaged: {error}") from error


def read_part(layout: RunLayout, part: PartRange) -> pa.Table:
    """The whole of one part of the table. Raises `StorageError` as `part_batches` does."""
    batches = list(part_batches(layout, part))
    return pa.Table.from_batches(batches, batches[0].schema if batches else SCHEMA)


def _check_columns(location: Location, schema: pa.Schema) -> None:
    if schema.names[: len(SCHEMA)] != SCHEMA.names or schema.types[: len(SCHEMA)] != SCHEMA.types:
        raise StorageError("storage", f"{location} has other columns than a caption table.")


def to_parquet(table: pa.Table, *, row_group_size: int = GROUP_ROWS) -> bytes:
    """The table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    with parquet_writer(buffer, table.schema) as writer:
        writer.write_table(table, row_group_size=row_group_size)
    return buffer.getvalue()


def parquet_writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """Writes tables of this schema into a Parquet file as parts of a run have it; a context manager."""
    return pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)


def from_parquet(data: bytes) -> pa.Table:
    """The table in the bytes of a Parquet file. Raises `pa.ArrowInvalid` or `OSError` for what is none."""
    return pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)


def _plain(message: str | None) -> str | None:
    """A message as valid Unicode, of bounded length and without credentials."""
    if message is None:
        return None
    text = without_secrets(message.encode("utf-8", "backslashreplace").decode("utf-8"))
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"
