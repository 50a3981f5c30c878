"""A remote file that is read again where a read of it failed for a reason that can pass.

A client's file object gives up in the middle of a long read; what it read before still holds.
Knows nothing of stores: which failures can pass is for `storage_errors` to say.
"""

import io
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from captioning.patience import retrying
from captioning.storage_errors import storage_errors

T = TypeVar("T")


class PatientFile(io.RawIOBase):
    """A seekable binary file for reading. Its errors are `StorageError`."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file = file
        self._uri = uri

    def read(self, size: int = -1, /) -> bytes:
        """`size` bytes from here, fewer at the end; all that follow when negative."""
        at = self._file.tell()

        def read() -> bytes:
            self._file.seek(at)
            return self._file.read(size)

        return self._again(read)

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` from here; returns how many bytes were read."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place in the file; returns it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place in the file."""
        return self._file.tell()

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Close the client's file too."""
        if not self.closed:
            self._file.close()
        super().close()

    def _again(self, operation: Callable[[], T]) -> T:
        def attempt(_: float | None) -> T:
            with storage_errors(self._uri, "read"):
                return operation()

        return retrying(attempt)
