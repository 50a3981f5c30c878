"""Fetches the bytes of one image: from a file, an object, a tar, or a cell of a table.

Transient failures (throttling, a reset, a 5xx, a time-out) are retried within the image's own time limit; other
failures (missing, forbidden) are its error at once.
"""

from tarfile import BLOCKSIZE
from typing import Annotated

from annotated_types import Ge, Gt, Le

from captioning.config import settings
from captioning.errors import ImageError, StorageError
from captioning.retries import RetryPolicy
from captioning.run.cells import changed_error
from captioning.run.fetch_cell import fetch_cell
from captioning.run.sources import Entry
from captioning.run.tars import is_member
from captioning.storage import Location, StorageSettings, unescape_name

#: Larger files are not read: no photo is as large, and it might not fit in memory.
MAX_BYTES = 1 << 30


@settings
class FetchSettings:
    """How the bytes of images are read. None of these settings changes a caption."""

    attempts: Annotated[int, Ge(1), Le(100)] = 8
    """The most attempts to read an image whose failures are transient; pauses double, from half a second."""

    timeout_s: Annotated[float, Gt(0)] = 120.0
    """The time limit for reading an image in seconds, all attempts together; then its error is `timeout`."""

    parallel: Annotated[int, Ge(1), Le(256)] = 16
    """Concurrent reads per decoding task, if the images are in an object store."""

    max_mb: Annotated[int, Ge(1)] = MAX_BYTES >> 20
    """The largest file in MiB that is read; larger ones get the error class `too_large`."""

    @property
    def max_bytes(self) -> int:
        """`max_mb` in bytes."""
        return self.max_mb << 20

    @property
    def retry_policy(self) -> RetryPolicy:
        """The retry policy of one image. An attempt has half of the time, so that one that hangs leaves another."""
        return RetryPolicy(attempts=self.attempts, seconds=self.timeout_s, attempt_seconds=self.timeout_s / 2)


def fetch(entry: Entry, storage: StorageSettings | None = None, settings: FetchSettings = FetchSettings()) -> bytes:
    """The image's bytes. Raises `StorageError`, or `ImageError` for one that is too large or cut short."""
    limit = settings.max_bytes
    if entry.size_bytes is not None and entry.size_bytes > limit:
        raise _too_large(f"{entry.size_bytes:,}", limit)
    if entry.table is not None:
        data = fetch_cell(entry, storage, settings.retry_policy)
        if len(data) > limit:
            raise _too_large(f"{len(data):,}", limit)
        return data
    if entry.tar is None:
        location = Location.from_uri(entry.uri, storage)
        if entry.size_bytes is not None:
            return location.read_bytes(retry=settings.retry_policy)
        # The size is unknown: read no more than the limit.
        data = _read_start(location, limit + 1, settings.retry_policy)
        if len(data) > limit:
            raise _too_large(f"more than {limit:,}", limit)
        return data
    assert entry.offset is not None, "an image in a tar has an offset"
    assert entry.size_bytes is not None, "an image in a tar has a size"
    location = Location.from_uri(entry.tar, storage)
    start = entry.offset - BLOCKSIZE
    block = location.read_range(start, BLOCKSIZE + entry.size_bytes, retry=settings.retry_policy)
    name = unescape_name(entry.uri.removeprefix(f"{entry.tar}#"))
    if len(block) < BLOCKSIZE or not is_member(block[:BLOCKSIZE], name, entry.size_bytes):
        raise changed_error(
            f"{location} has been rewritten since it was listed: another file is at this image's place."
        )
    data = block[BLOCKSIZE:]
    if len(data) < entry.size_bytes:
        raise ImageError("truncated", f"The tar ends after {len(data):,} of the image's {entry.size_bytes:,} bytes.")
    return data


def _too_large(size: str, limit: int) -> ImageError:
    return ImageError("too_large", f"The file has {size} bytes; at most {limit:,} are read (fetch.max_mb).")


def _read_start(location: Location, length: int, retry: RetryPolicy) -> bytes:
    try:
        return location.read_range(0, length, retry=retry)
    except StorageError as error:
        info = location.info() if error.error_class == "storage" else None
        if info is not None and info.size == 0:
            return b""  # stores refuse a range of an empty object
        raise
