"""Parquet and Arrow files of images, or of paths or URIs of images. Each row is an image.

Image bytes are not read here but when the image is fetched.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from captioning.errors import InputError, StorageError
from captioning.run.columnar import COLUMNAR_SUFFIXES, columnar_errors, open_columnar
from captioning.run.digests import DigestSet, digests
from captioning.run.sources.base import Source
from captioning.run.sources.columns import as_kept, holds_uris, image_column, kept_type, require_column, texts
from captioning.run.sources.entry import Entry
from captioning.run.sources.uris import locate
from captioning.storage import Location, escape_name

_BATCH = 4096


class TableSource(Source):
    """Parquet or Arrow files: one, a folder or a glob of them; the id is the id column's, else `FILE#ROW`.

    `FILE` is the path below the INPUT, `ROW` counts from 0. A damaged file yields the rows that can be read, and a
    note. In a folder, files and folders whose names begin with `_` or `.` are skipped.
    """

    kind = "tables"
    suffixes = COLUMNAR_SUFFIXES
    content = "row"

    @classmethod
    def matches(cls, path: str) -> bool:
        """As for every kind, but without the metadata files that other programs keep beside their tables."""
        return path.endswith(cls.suffixes) and not any(name.startswith(("_", ".")) for name in path.split("/"))

    def kept_types(self) -> Mapping[str, pa.DataType]:
        """The types of the columns to keep, from the first file that can be read."""
        for _, location in self._containers():
            try:
                with open_columnar(location) as table:
                    return {
                        name: kept_type(table.schema.field(name))
                        for name in self.settings.keep_columns
                        if name in table.schema.names
                    }
            except StorageError as error:
                if not _is_damage(error):
                    raise
        return {}

    def _entries(self) -> Iterator[Entry]:
        seen = DigestSet()
        for file, location in self._containers():
            try:
                with open_columnar(location) as table:
                    schema = table.schema
            except StorageError as error:
                if not _is_damage(error):
                    raise
                self.notes.append(f"{error.message} It was skipped.")
                continue
            columns = _Columns(self, location, schema)
            for first, batch in self._batches(location, columns.read):
                entries = columns.entries(escape_name(file.path), file.version, first, batch)
                if self.settings.id_column is not None:
                    new = seen.add(digests([entry.image_id for entry in entries]))
                    if not new.all():
                        raise _repeated_id_error(entries[int(new.argmin())], location, self.settings.id_column)
                yield from entries

    def _batches(self, location: Location, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches with the number of their first row; a damaged piece is skipped with a note."""
        with open_columnar(location) as table:
            at = 0
            while True:
                try:
                    with columnar_errors(location):
                        for first, batch in table.batches(columns, start=at, rows=_BATCH):
                            yield first, batch
                            at = first + batch.num_rows
                    return
                except StorageError as error:
                    if not _is_damage(error):
                        raise
                    start, stop = at, table.span(at)[1]
                    rest = f"Rows from {start:,} on" if stop > 1 << 62 else f"Rows {start:,} to {stop - 1:,}"
                    self.notes.append(f"{error.message} {rest} were skipped.")
                    if stop > 1 << 62:
                        return
                    at = stop


class _Columns:
    """The columns to read of one file, and the conversion of its rows to entries."""

    def __init__(self, source: TableSource, location: Location, schema: pa.Schema) -> None:
        self._prefix, self._location = source.prefix, location
        self._image = image_column(schema, source.settings.image_column, location)
        self._has_uris = holds_uris(schema.field(self._image).type)
        self._id = source.settings.id_column
        if self._id is not None:
            require_column(schema, self._id, "input.id_column", location)
        self._wanted = source.kept
        self._kept = {name for name in source.kept.names if name in schema.names}
        named = [self._image if self._has_uris else None, self._id, *sorted(self._kept)]
        self.read = list(dict.fromkeys(name for name in named if name is not None))

    def entries(self, file: str, version: str, first: int, batch: pa.RecordBatch) -> list[Entry]:
        """The entries of a batch whose first row is number `first`."""
        rows = range(first, first + batch.num_rows)
        nothing: list[None] = [None] * len(rows)
        ids = texts(batch.column(self._id), self._id, self._location) if self._id is not None else nothing
        uris = texts(batch.column(self._image), self._image, self._location) if self._has_uris else nothing
        kept: list[Any] = [
            as_kept(batch.column(field.name), field.type, field.name, self._location)
            if field.name in self._kept
            else nothing
            for field in self._wanted
        ]
        made = []
        for at, (row, name, uri) in enumerate(zip(rows, ids, uris, strict=True)):
            image_id = self._prefix + (escape_name(name) if name else f"{file}#{row}")
            values = tuple(None if column is nothing else column.slice(at, 1) for column in kept)
            if uri:
                found = locate(uri, self._location.parent, where=f"row {row:,} of {self._location}")
                made.append(Entry(image_id, found.uri, kept=values))
                continue
            made.append(
                Entry(
                    image_id,
                    f"{self._location.uri}#{row}",
                    version=version,
                    table=self._location.uri,
                    column=self._image,
                    row=row,
                    kept=values,
                )
            )
        return made


def _is_damage(error: StorageError) -> bool:
    return error.error_class == "storage" and not error.transient


def _repeated_id_error(entry: Entry, location: Location, column: str) -> InputError:
    return InputError(
        f"The image id {entry.image_id!r} appears twice in column {column!r}, the second time in {location}. Set "
        "input.id_column to a column without repeats, or to null: the id is then FILE#ROW."
    )
