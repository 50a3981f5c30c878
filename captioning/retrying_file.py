"""A remote file that retries reads which fail for a transient reason.

A client's file object may give up in the middle of a long read; a retry continues at the same offset.
`storage_errors` decides which failures are transient.
"""

import io
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from captioning.retries import call_with_retries
from captioning.storage_errors import storage_errors

T = TypeVar("T")


class RetryingFile(io.RawIOBase):
    """A seekable binary file for reading. Raises `StorageError`."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file = file
        self._uri = uri

    def read(self, size: int = -1, /) -> bytes:
        """Read `size` bytes, fewer at the end; all that follow when negative."""
        position = self._file.tell()

        def read() -> bytes:
            self._file.seek(position)
            return self._file.read(size)

        return self._retry(read)

    def readinto(self, buffer: Any, /) -> int:
        """Read into `buffer`; return the number of bytes read."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position in the file and return it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position in the file."""
        return self._file.tell()

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def close(self) -> None:
        """Close the client's file as well."""
        if not self.closed:
            self._file.close()
        super().close()

    def _retry(self, operation: Callable[[], T]) -> T:
        def attempt(_: float | None) -> T:
            with storage_errors(self._uri, "read"):
                return operation()

        return call_with_retries(attempt)
