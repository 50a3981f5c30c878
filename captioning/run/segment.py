"""One segment of the index: its marker, and reading and writing its rows.

A segment is a few Parquet files, one for each part of the table, in which every shard is a row group, and a
marker, `segment-0000.json`, written last. A file that no marker names is not part of the index.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captioning.errors import StorageError
from captioning.run.layout import SHARDS_PER_PART, PartRange, RunLayout, Shard
from captioning.run.sources import Entry
from captioning.storage import Location
from captioning.storage_errors import storage_errors

INDEX_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("version", pa.string(), nullable=False),
        pa.field("tar", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("table", pa.string()),
        pa.field("column", pa.string()),
        pa.field("row", pa.int64()),
    ]
)

#: Prefix of the kept columns in an index file, for they may have any name.
KEPT_PREFIX = "kept:"


@dataclass(frozen=True)
class Segment:
    """The content of a segment's marker.

    `files` are the names of its index files, one for each range of `ranges()`. `skipped`, `repeated` and
    `notes` are findings of the listing (see `Source`), summed over the sources.
    """

    number: int
    first_shard: int
    first_row: int
    rows: int
    shard_size: int
    files: tuple[str, ...]
    skipped: Mapping[str, int]
    repeated: int
    notes: tuple[str, ...]
    kept: str = ""
    """The archive's columns that the caption table keeps: an Arrow schema in base64."""

    @property
    def kept_schema(self) -> pa.Schema:
        """The archive's columns that the caption table keeps."""
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.kept))) if self.kept else pa.schema([])

    @property
    def stop_shard(self) -> int:
        """One more than the segment's last shard."""
        return self.first_shard + -(-self.rows // self.shard_size)

    @property
    def stop_row(self) -> int:
        """One more than the segment's last row."""
        return self.first_row + self.rows

    def shard(self, number: int) -> Shard:
        """The shard with this number, which must be in the segment."""
        start = self.first_row + (number - self.first_shard) * self.shard_size
        return Shard(number, self.number, start, min(start + self.shard_size, self.stop_row))

    def ranges(self) -> list[PartRange]:
        """The ranges of shards, each of which becomes a part, in order."""
        found = []
        first = self.first_shard
        while first < self.stop_shard:
            stop = min((first // SHARDS_PER_PART + 1) * SHARDS_PER_PART, self.stop_shard)
            found.append(PartRange(first, stop - 1))
            first = stop
        return found

    def range_of(self, shard: int) -> PartRange:
        """The range of the part that a shard belongs to."""
        first = shard // SHARDS_PER_PART * SHARDS_PER_PART
        return PartRange(max(first, self.first_shard), min(first + SHARDS_PER_PART, self.stop_shard) - 1)

    def file_of(self, shard: int) -> tuple[str, int]:
        """The index file that holds a shard, and the shard's row group in it."""
        file = shard // SHARDS_PER_PART - self.first_shard // SHARDS_PER_PART
        first = max(self.first_shard, shard // SHARDS_PER_PART * SHARDS_PER_PART)
        return self.files[file], shard - first

    def to_json(self) -> bytes:
        """The marker's content."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: Location) -> "Segment":
        """Parse a marker. Raises `StorageError` when it is damaged."""
        try:
            values: dict[str, Any] = json.loads(data)
            return cls(**{**values, "files": tuple(values["files"]), "notes": tuple(values["notes"])})
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(
                "storage", f"The index marker {where} is damaged ({error}). Restore it, or choose another OUTPUT."
            ) from error


def marker(layout: RunLayout, number: int) -> Location:
    """The location of a segment's marker."""
    return layout.index_dir / f"segment-{number:04d}.json"


def encode_schema(schema: pa.Schema) -> str:
    """A schema as in `Segment.kept`: base64, empty when it has no columns."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode() if len(schema) else ""


def index_schema(kept: pa.Schema) -> pa.Schema:
    """The columns of an index file: `INDEX_SCHEMA` and the `kept` ones."""
    return pa.schema([*INDEX_SCHEMA, *(pa.field(KEPT_PREFIX + field.name, field.type) for field in kept)])


def entries_to_table(entries: Sequence[Entry], kept: pa.Schema | None = None) -> pa.Table:
    """The entries as rows of `index_schema(kept)`, in order; `kept` is the schema of `Entry.kept`."""
    arrays = [pa.array(list(map(attrgetter(field.name), entries)), field.type) for field in INDEX_SCHEMA]
    kept = kept if kept is not None else pa.schema([])
    for number, field in enumerate(kept):
        null = pa.nulls(1, field.type)
        values = (entry.kept[number] if entry.kept else None for entry in entries)
        arrays.append(pa.concat_arrays([null if value is None else value for value in values]))
    return pa.Table.from_arrays(arrays, schema=index_schema(kept))


def table_to_entries(table: pa.Table) -> list[Entry]:
    """The entries of a table with the columns of the index, in order, without the kept columns."""
    present = set(table.schema.names)
    return [Entry(**row) for row in table.select([name for name in INDEX_SCHEMA.names if name in present]).to_pylist()]


def kept_of(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The kept columns (`schema`) of a table with the columns of the index."""
    return table.select([KEPT_PREFIX + name for name in schema.names]).rename_columns(schema.names).cast(schema)


def replace_rows(old: pa.Table, new: pa.Table) -> pa.Table:
    """The rows of `old` in order, those with an `image_id` in `new` replaced by its rows."""
    places = pc.fill_null(pc.index_in(old["image_id"], new["image_id"].combine_chunks()), -1).to_numpy()
    rows = np.where(places < 0, np.arange(old.num_rows), old.num_rows + places)
    return pa.concat_tables([old, new.cast(old.schema)]).combine_chunks().take(pa.array(rows, pa.int64()))


def write_file(layout: RunLayout, name: str, table: pa.Table, shard_size: int) -> None:
    """Write one index file, a row group for each `shard_size` rows."""
    buffer = io.BytesIO()
    # Names differ from row to row, and nobody filters by their minimum and maximum: with dictionaries and
    # statistics of every column the footer, which is read with each shard, would be as large as the shard.
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        row_group_size=shard_size,
        use_dictionary=["tar", "table", "column"],
        write_statistics=False,
    )
    (layout.index_dir / name).write_bytes(buffer.getvalue(), temp=layout.tmp_dir)


def read_group(layout: RunLayout, name: str, group: int, expected: int) -> list[Entry]:
    """The entries of one row group. Raises `StorageError` when the file is damaged."""
    return table_to_entries(_read_group(layout, name, group, expected, INDEX_SCHEMA.names))


def read_kept(layout: RunLayout, name: str, group: int, expected: int, schema: pa.Schema) -> pa.Table:
    """The kept columns (`schema`) of one row group. Raises `StorageError` when the file is damaged."""
    return kept_of(_read_group(layout, name, group, expected, [KEPT_PREFIX + field for field in schema.names]), schema)


def _read_group(layout: RunLayout, name: str, group: int, expected: int, columns: Sequence[str]) -> pa.Table:
    """Those of `columns` that the file has: one of an older Captioning has fewer."""
    location = layout.index_dir / name
    try:
        with storage_errors(location.uri), location.open_read() as file:
            parquet = pq.ParquetFile(file)
            present = set(parquet.schema_arrow.names)
            table = parquet.read_row_group(group, columns=[column for column in columns if column in present])
    except (pa.ArrowInvalid, IndexError) as error:
        raise _damaged(location, error) from error
    if table.num_rows != expected:
        raise _damaged(location, f"{table.num_rows} rows where there should be {expected}")
    return table


def read_columns(layout: RunLayout, name: str, columns: Sequence[str]) -> pa.Table:
    """Those of `columns` that one index file has. Raises `StorageError` when the file is damaged."""
    return _read(layout, name, columns)


def read_table(layout: RunLayout, name: str) -> pa.Table:
    """All columns of one index file. Raises `StorageError` when the file is damaged."""
    return _read(layout, name, None)


def _read(layout: RunLayout, name: str, columns: Sequence[str] | None) -> pa.Table:
    location = layout.index_dir / name
    try:
        parquet = pq.ParquetFile(io.BytesIO(location.read_bytes()))
        names = parquet.schema_arrow.names
        return parquet.read(columns=[column for column in columns if column in names] if columns is not None else names)
    except pa.ArrowInvalid as error:
        raise _damaged(location, error) from error


def _damaged(location: Location, reason: object) -> StorageError:
    return StorageError(
        "storage", f"The index file {location} is damaged: {reason}. Restore it, or choose another OUTPUT."
    )
