"""Reads single cells of Parquet and Arrow files, for readers that go through them row by row.

A process keeps a few files open, each with a window of rows around the one read last: rows in order are read
once, and memory is bounded by the window.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from captioning.errors import StorageError
from captioning.run.columnar import ColumnarFile, columnar_errors, open_columnar
from captioning.storage import Location

#: Rows read at a time, and rows kept behind the last one: threads ask slightly out of order.
_BATCH, _WINDOW = 8, 32
_OPEN_FILES = 4


def changed_error(what: str) -> StorageError:
    """The error for an image that has changed since it was listed; `what` is the first sentence of its message."""
    return StorageError("changed", f"{what} Run the `caption` command again with --refresh changed.")


def read_cell(location: Location, column: str, row: int, version: str = "", *, check_version: bool = False) -> Any:
    """The value in `column` of row `row` (from 0): bytes, text, a dict, or None for null.

    Bytes of text that are not UTF-8 become surrogate escapes. `version` is the file's: a file with another version
    is opened anew. With `check_version` a file that no longer has this version is refused. Raises `StorageError`.
    """
    return _reader(location, column, version, check_version).cell(row)


class _Reader:
    """One column of one open file, with the window of rows."""

    def __init__(self, location: Location, column: str, version: str | None) -> None:
        """With a `version`, the file must still have it."""
        self._lock = threading.Lock()
        self._version = version
        self._location, self._column = location, column
        self._stack = ExitStack()
        self._file: ColumnarFile | None = None
        self._batches: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._window: deque[tuple[int, pa.Array]] = deque()
        self._next = 0
        self._damaged_spans: dict[range, StorageError] = {}

    def cell(self, row: int) -> Any:
        """The value in this row."""
        with self._lock:
            for rows, error in self._damaged_spans.items():
                if row in rows:
                    # Reading up to the damage again for every row behind it would take too long.
                    raise error
            try:
                with columnar_errors(self._location):
                    return self._find(row)
            except StorageError as error:
                if self._file is not None and error.error_class == "storage" and not error.transient:
                    self._damaged_spans[range(self._next, self._file.span(self._next)[1])] = error
                self._close()
                raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _find(self, row: int) -> Any:
        if self._file is None:
            if self._version is not None:
                info = self._location.info()
                if info is not None and info.version != self._version:
                    raise changed_error(f"{self._location} has been rewritten since it was listed.")
            self._file = self._stack.enter_context(open_columnar(self._location))
            if self._column not in self._file.schema.names:
                raise StorageError("missing", f"{self._location} no longer has a column {self._column!r}.")
            self._start(row)
        elif (self._window and row < self._window[0][0]) or self._file.span(row)[0] > self._next:
            self._start(row)
        while row >= self._next:
            found = next(self._batches, None)
            if found is None:
                raise StorageError("missing", f"{self._location} no longer has a row {row:,}.")
            first, batch = found
            self._window.append((first, batch.column(0)))
            self._next = first + batch.num_rows
            while len(self._window) > 1 and self._window[1][0] < self._next - _WINDOW:
                self._window.popleft()
        first, values = next(piece for piece in self._window if row < piece[0] + len(piece[1]))
        return _to_python(values[row - first])

    def _start(self, row: int) -> None:
        assert self._file is not None, "the file is open"
        self._window.clear()
        self._next = self._file.span(row)[0]
        self._batches = self._file.batches([self._column], start=row, rows=_BATCH)

    def _close(self) -> None:
        self._stack.close()
        self._file = None
        self._batches = iter(())
        self._window.clear()


_readers: OrderedDict[tuple[Location, str, str, bool], _Reader] = OrderedDict()
_lock = threading.Lock()


def _reader(location: Location, column: str, version: str, check_version: bool) -> _Reader:
    key = (location, column, version, check_version)
    with _lock:
        reader = _readers.pop(key, None) or _Reader(location, column, version if check_version else None)
        _readers[key] = reader
        old = _readers.popitem(last=False)[1] if len(_readers) > _OPEN_FILES else None
    if old is not None:
        old.close()
    return reader


def _to_python(value: pa.Scalar) -> Any:
    """A scalar as a Python value; text is decoded from its bytes, for it may not be UTF-8."""
    if isinstance(value, pa.ExtensionScalar):
        value = value.value
    if value is None or not value.is_valid:
        return None
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    if isinstance(value, pa.StructScalar):
        return {name: _to_python(value[name]) for name in value.type.names}
    buffer = value.as_buffer() if hasattr(value, "as_buffer") else None
    if buffer is None:
        return value.as_py()
    data = buffer.to_pybytes()
    is_text = pa.types.is_string(value.type) or pa.types.is_large_string(value.type) or value.type == pa.string_view()
    return data.decode("utf-8", "surrogateescape") if is_text else data
