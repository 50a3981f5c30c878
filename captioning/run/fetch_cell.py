"""The bytes of an image that lies in a cell of a Parquet or Arrow file. Knows nothing of what is in them."""

from typing import Any

from captioning.errors import ImageError, InputError
from captioning.retries import RetryPolicy, call_with_retries
from captioning.run.cells import read_cell
from captioning.run.sources.entry import Entry
from captioning.run.sources.uris import locate
from captioning.storage import Location, StorageSettings


def fetch_cell(entry: Entry, storage: StorageSettings | None, retry: RetryPolicy) -> bytes:
    """The image's bytes. What `datasets` writes without bytes leads to the file that its `path` names.

    Raises `StorageError`, and `ImageError` for a path that may not be followed and a cell that holds no image.
    """
    assert entry.table is not None, "an image in a table has one"
    assert entry.column is not None, "an image in a table has a column"
    assert entry.row is not None, "an image in a table has a row"
    column, row = entry.column, entry.row
    table = Location.from_uri(entry.table, storage)
    # An id of its own goes with an image wherever it lies, `FILE#ROW` with the place.
    own_id = bool(entry.version) and not entry.image_id.endswith(f"#{row}")
    value: Any = call_with_retries(lambda _: read_cell(table, column, row, entry.version, as_listed=own_id), retry)
    if isinstance(value, dict):
        path = value.get("path")
        value = value.get("bytes")
        if value is None and path:
            return _follow(path, entry.row, table, retry)
    if value is None or isinstance(value, str):
        raise ImageError("empty", f"Row {entry.row:,} holds nothing in column {entry.column!r}.")
    return bytes(value)


def _follow(path: str, row: int, table: Location, retry: RetryPolicy) -> bytes:
    try:
        found = locate(path, table.parent, where=f"row {row:,} of {table}")
    except InputError as error:
        raise ImageError("forbidden", str(error)) from error
    return found.read_bytes(retry=retry)
