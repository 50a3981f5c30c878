"""Reads Parquet and Arrow files: their schema, and batches of some of their columns from a given row on.

Formats are Parquet, Arrow's file format (Feather) and Arrow's stream format (which `datasets` writes). Memory is
bounded by a batch, whatever the size of a Parquet row group.
"""

import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from captioning.errors import StorageError
from captioning.storage import Location
from captioning.storage_errors import storage_errors

#: File name suffixes of these formats, in lower case.
COLUMNAR_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")

#: Bytes buffered per Parquet column.
_BUFFER = 1 << 20


class ColumnarFile(ABC):
    """An open file of rows and columns."""

    schema: pa.Schema

    @abstractmethod
    def batches(self, columns: Sequence[str], *, start: int, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches of these columns with the number of their first row, in order, until the end.

        The first batch may begin before row `start`; rows far before it are skipped if the format allows.
        Parquet batches have at most `rows` rows, Arrow batches those of the file.
        """

    def span(self, row: int) -> tuple[int, int]:  # noqa: ARG002 - the default is the whole file
        """The first row, and one more than the last, of the piece of the file that contains `row`.

        Damage in one piece does not affect the others.
        """
        return 0, sys.maxsize


@contextmanager
def open_columnar(location: Location) -> Iterator[ColumnarFile]:
    """Open the file at `location`. Failures in the body, damage included, raise `StorageError`."""
    with columnar_errors(location), location.open_read() as file:
        head = file.read(6)
        file.seek(0)
        if head[:4] == b"PAR1":
            yield _Parquet(file)
        elif head == b"ARROW1":
            with _arrow_source(location, file) as source:
                yield _ArrowFile(source)
        elif head[:4] == b"\xff\xff\xff\xff":
            with _arrow_source(location, file) as source:
                yield _ArrowStream(source)
        else:
            raise StorageError("storage", f"{location} is not a Parquet or Arrow file{_guess(head)}.")


@contextmanager
def columnar_errors(location: Location) -> Iterator[None]:
    """Turn failures inside into a `StorageError` about `location`."""
    try:
        with storage_errors(location.uri, "read"):
            yield
    except StorageError as error:
        # Arrow often reports damage within a file as an OSError, one without an errno.
        if type(error.__cause__) is OSError and error.__cause__.errno is None:
            raise _damaged(location, error.__cause__) from error
        raise
    except (pa.ArrowException, EOFError) as error:
        raise _damaged(location, error) from error


def _damaged(location: Location, error: Exception) -> StorageError:
    reason = " ".join(str(error).split())
    return StorageError("storage", f"{location} is damaged or cut short: {reason[:300]}.")


class _Parquet(ColumnarFile):
    def __init__(self, file: Any) -> None:
        self._file = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        counts = (metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        self._starts = [0, *accumulate(counts)]

    def batches(self, columns: Sequence[str], *, start: int, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        group = self._group(start)
        at = self._starts[group]
        # One group at a time: damage in one does not affect the next.
        for number in range(group, len(self._starts) - 1):
            for batch in self._file.iter_batches(
                batch_size=rows, row_groups=[number], columns=list(columns), use_threads=False
            ):
                yield at, batch
                at += batch.num_rows

    def span(self, row: int) -> tuple[int, int]:
        group = self._group(row)
        return self._starts[group], self._starts[min(group + 1, len(self._starts) - 1)]

    def _group(self, row: int) -> int:
        """The row group of a row; the number of groups for a row behind the last."""
        return bisect_right(self._starts, row) - 1


class _ArrowFile(ColumnarFile):
    def __init__(self, source: Any) -> None:
        self._source = source
        self._reader = ipc.open_file(source)
        self.schema = self._reader.schema

    def batches(self, columns: Sequence[str], *, start: int, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:  # noqa: ARG002 - the file says
        reader = ipc.open_file(self._source, options=_only(self.schema, columns)) if columns else self._reader
        at = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            if at + batch.num_rows > start:
                yield at, batch.select(list(columns))
            at += batch.num_rows


class _ArrowStream(ColumnarFile):
    def __init__(self, source: Any) -> None:
        self._source = source
        self.schema = ipc.open_stream(source).schema

    def batches(self, columns: Sequence[str], *, start: int, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:  # noqa: ARG002 - the file says
        self._source.seek(0)
        reader = (
            ipc.open_stream(self._source, options=_only(self.schema, columns))
            if columns
            else ipc.open_stream(self._source)
        )
        at = 0
        for batch in reader:
            if at + batch.num_rows > start:
                yield at, batch.select(list(columns))
            at += batch.num_rows


def _only(schema: pa.Schema, columns: Sequence[str]) -> Any:
    return ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns])


@contextmanager
def _arrow_source(location: Location, file: Any) -> Iterator[Any]:
    """A memory map if the file is local, so that other columns are not read."""
    try:
        source = pa.memory_map(location.path) if location.is_local else pa.PythonFile(file, mode="r")
    except (UnicodeEncodeError, OSError):
        source = pa.PythonFile(file, mode="r")  # a name that is not UTF-8
    with source:
        yield source


def _guess(head: bytes) -> str:
    if head[:4] == b"FEA1":
        return ": it is Feather version 1; write it again with pyarrow.feather.write_feather"
    if head[:4] == b"PARE":
        return ": it is encrypted"
    return " (it is empty)" if not head else f" (it begins with {head!r})"
