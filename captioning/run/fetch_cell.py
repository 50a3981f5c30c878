"""Fetches the bytes of an image that is in a cell of a Parquet or Arrow file."""

from typing import Any

from captioning.errors import ImageError, InputError
from captioning.retries import RetryPolicy, call_with_retries
from captioning.run.cells import read_cell
from captioning.run.sources.entry import Entry
from captioning.run.sources.uris import locate
from captioning.storage import Location, StorageSettings


def fetch_cell(entry: Entry, storage: StorageSettings | None, retry: RetryPolicy) -> bytes:
    """The image's bytes. For a Hugging Face `datasets` image without bytes, those of the file at its `path`.

    Raises `StorageError`, and `ImageError` for a path that may not be read and a cell without an image.
    """
    assert entry.table is not None, "an image in a table has one"
    assert entry.column is not None, "an image in a table has a column"
    assert entry.row is not None, "an image in a table has a row"
    column, row = entry.column, entry.row
    table = Location.from_uri(entry.table, storage)
    # An id from a column belongs to an image, which may have moved; `FILE#ROW` belongs to the place.
    own_id = bool(entry.version) and not entry.image_id.endswith(f"#{row}")
    value: Any = call_with_retries(lambda _: read_cell(table, column, row, entry.version, check_version=own_id), retry)
    if isinstance(value, dict):
        path = value.get("path")
        value = value.get("bytes")
        if value is None and path:
            return _follow(path, entry.row, table, retry)
    if value is None or isinstance(value, str):
        raise ImageError("empty", f"Row {entry.row:,} has no value in column {entry.column!r}.")
    return bytes(value)


def _follow(path: str, row: int, table: Location, retry: RetryPolicy) -> bytes:
    try:
        found = locate(path, table.parent, where=f"row {row:,} of {table}")
    except InputError as error:
        raise ImageError("forbidden", str(error)) from error
    return found.read_bytes(retry=retry)
