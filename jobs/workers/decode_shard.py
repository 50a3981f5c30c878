"""Fetches and decodes the images of one shard: from index rows to pixels, or an error per image.

Runs in Ray Data's CPU tasks. An image that fails becomes an error row: no exception about one image leaves this
module, and an image that crashes its decoder affects no other (`decode_process`). Failures that are not about an
image are raised and end the run: a store that cannot be reached at all (`store_watch`).
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import pyarrow as pa

from captioning.data.preprocess import PreprocessSettings
from captioning.errors import CaptioningError, ImageError, StorageError
from captioning.run.fetch import FetchSettings, fetch
from captioning.run.shard_io import ShardIO
from captioning.run.sources import Entry
from captioning.storage import StorageSettings
from jobs.workers.decode_process import Decoder, DecodeSettings, decoder_of
from jobs.workers.store_watch import StoreWatch

#: For images on local disks: concurrent fetches, of which few suffice, and images fetched ahead.
_LOCAL_FETCHES, _LOCAL_AHEAD = 2, 32
#: The most bytes fetched ahead in a task, except for a single larger image.
_BYTES_AHEAD = 256 << 20
#: The assumed size of an image if the listing does not have it.
_ASSUMED_BYTES = 4 << 20
#: Seconds beyond an image's time limit after which its fetch is abandoned.
_GRACE_SECONDS = 30.0

#: One row per image, in the index's order. `pixels` has S * S * 3 bytes, or is null if the image failed.
DECODED = pa.schema(
    [
        ("shard", pa.int64()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("pixels", pa.large_binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("error_class", pa.string()),
        ("error_message", pa.string()),
        ("fetch_seconds", pa.float64()),
        ("decode_seconds", pa.float64()),
    ]
)


@dataclass(frozen=True)
class DecodeShard:
    """A Ray Data function: takes a batch with one shard's number, returns the shard's decoded images."""

    shard_io: ShardIO
    preprocess: PreprocessSettings
    storage: StorageSettings
    fetch: FetchSettings = FetchSettings()
    decode: DecodeSettings = DecodeSettings()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The `DECODED` table of the shard in the batch."""
        [number] = batch.column("shard").to_pylist()
        entries = self.shard_io.entries(number)
        return decode_entries(number, entries, self.preprocess, self.storage, self.fetch, self.decode)


def decode_entries(
    number: int,
    entries: Sequence[Entry],
    preprocess: PreprocessSettings,
    storage: StorageSettings,
    fetching: FetchSettings = FetchSettings(),
    decode: DecodeSettings = DecodeSettings(),
) -> pa.Table:
    """The `DECODED` table of these images: fetched ahead by a few threads, decoded one after another.

    Raises `StorageError` if the store cannot be reached, `UnfinishedError` if the decoder does not start.
    """
    decoder = decoder_of(preprocess, decode)
    watch = StoreWatch(storage, fetching)
    rows = []
    for entry, fetched in _fetched(entries, storage, fetching):
        if fetched.data is not None:
            watch.read(entry)
        elif fetched.error is not None:
            watch.failed(entry, fetched.error)
        rows.append(_row(number, entry, fetched, decoder))
    watch.finish()
    return pa.Table.from_pylist(rows, schema=DECODED)


@dataclass(frozen=True)
class _Fetched:
    data: bytes | None
    seconds: float
    error: StorageError | ImageError | None = None


def _fetched(
    entries: Sequence[Entry], storage: StorageSettings, fetching: FetchSettings
) -> Iterator[tuple[Entry, _Fetched]]:
    """Every entry with its bytes, in order; the number and the size of images in memory are bounded."""
    remote = any("://" in entry.uri for entry in entries)
    threads, most = (fetching.parallel, 2 * fetching.parallel) if remote else (_LOCAL_FETCHES, _LOCAL_AHEAD)
    timeout = fetching.timeout_s + _GRACE_SECONDS
    pool = ThreadPoolExecutor(max_workers=threads)
    waiting: deque[tuple[Entry, Future[_Fetched]]] = deque()
    upcoming = deque(entries)
    ahead = 0
    try:
        while waiting or upcoming:
            # Submit many at a time: each time that a thread wakes up, it takes a core from the model.
            room = most - len(waiting) if 2 * len(waiting) <= most else 0
            while upcoming and room > 0 and (not ahead or ahead + _size(upcoming[0]) <= _BYTES_AHEAD):
                room -= 1
                entry = upcoming.popleft()
                ahead += _size(entry)
                waiting.append((entry, pool.submit(_fetch, entry, storage, fetching)))
            entry, future = waiting.popleft()
            ahead -= _size(entry)
            try:
                fetched = future.result(timeout)
            except FutureTimeoutError:
                # A file system that does not answer blocks its thread for ever: go on in new threads.
                fetched = _Fetched(None, timeout, _timeout_error(entry, timeout))
                pool.shutdown(wait=False, cancel_futures=True)
                pool = ThreadPoolExecutor(max_workers=threads)
                upcoming.extendleft(entry for entry, _ in reversed(waiting))
                waiting.clear()
                ahead = 0
            yield entry, fetched
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _fetch(entry: Entry, storage: StorageSettings, fetching: FetchSettings) -> _Fetched:
    start = time.perf_counter()
    try:
        data = fetch(entry, storage, fetching)
        return _Fetched(data, time.perf_counter() - start)
    except (StorageError, ImageError) as error:
        return _Fetched(None, time.perf_counter() - start, error)
    except Exception as error:  # any other failure is this image's error as well
        reason = error if isinstance(error, CaptioningError) else f"{type(error).__name__}: {error}"
        return _Fetched(None, time.perf_counter() - start, ImageError("storage", str(reason)))


def _size(entry: Entry) -> int:
    return _ASSUMED_BYTES if entry.size_bytes is None else entry.size_bytes


def _timeout_error(entry: Entry, seconds: float) -> StorageError:
    return StorageError(
        "timeout",
        f"Could not read {entry.uri}: its file system did not respond within {seconds:g} s (fetch.timeout_s).",
        transient=True,
    )


def _row(number: int, entry: Entry, fetched: _Fetched, decoder: Decoder) -> dict[str, Any]:
    row: dict[str, Any] = {
        "shard": number,
        "image_id": entry.image_id,
        "uri": entry.uri,
        "size_bytes": entry.size_bytes,
        "error_class": fetched.error.error_class if fetched.error else None,
        "error_message": fetched.error.message if fetched.error else None,
        "fetch_seconds": fetched.seconds,
        "decode_seconds": 0.0,
    }
    if fetched.data is None:
        return row
    row["size_bytes"] = len(fetched.data)
    start = time.perf_counter()
    try:
        image, row["decode_seconds"] = decoder.decode(fetched.data)
        row |= {"pixels": image.pixels.tobytes(), "width": image.width, "height": image.height}
    except ImageError as error:
        row |= {"error_class": error.error_class, "error_message": error.message}
        row["decode_seconds"] = time.perf_counter() - start
    return row


def pixels_of(decoded: pa.Table) -> np.ndarray[Any, Any]:
    """Pixels (B, S, S, 3) uint8 of the B images of a `DECODED` table that did not fail."""
    images = [np.frombuffer(value.as_buffer(), np.uint8) for value in decoded.column("pixels") if value.is_valid]
    if not images:
        return np.empty((0, 0, 0, 3), np.uint8)
    side = isqrt(len(images[0]) // 3)
    return np.stack(images).reshape(-1, side, side, 3)
