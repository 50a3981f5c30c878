"""One shard of an archive from index rows to pixels: fetched and decoded, or a reason why not.

Runs in Ray Data's CPU tasks. Knows images and where they are; knows nothing of the model beyond
its preprocessing. An image that fails is a row with a reason: nothing raised for one image gets out,
and one that ends the process which decodes it ends no other (`decode_process`). What is no image's
fault does get out and ends the run: a store that is lost as a whole (`store_watch`).
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
from captioning.run.book import ShardBook
from captioning.run.fetch import FetchSettings, fetch
from captioning.run.sources import Entry
from captioning.storage import StorageSettings
from jobs.workers.decode_process import Decoder, DecodeSettings, decoder_of
from jobs.workers.store_watch import StoreWatch

#: Fetches under way at once where all images are on local disks, which need few, and images asked for ahead there.
_LOCAL_FETCHES, _LOCAL_AHEAD = 2, 32
#: Bytes fetched ahead in a task, but for one image that is larger by itself.
_BYTES_AHEAD = 256 << 20
#: What an image is taken to have where no listing says.
_USUAL_BYTES = 4 << 20
#: Seconds beyond an image's own that a fetch is given before it is left alone.
_GRACE_SECONDS = 30.0

#: One row an image, in the index's order. `pixels` holds S * S * 3 bytes, or null where the image failed.
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
    """A Ray Data function: a batch with one shard's number in, the shard's decoded images out."""

    book: ShardBook
    preprocess: PreprocessSettings
    storage: StorageSettings
    fetch: FetchSettings = FetchSettings()
    decode: DecodeSettings = DecodeSettings()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`DECODED` for the shard that the batch names."""
        [number] = batch.column("shard").to_pylist()
        entries = self.book.entries(number)
        return decode_entries(number, entries, self.preprocess, self.storage, self.fetch, self.decode)


def decode_entries(
    number: int,
    entries: Sequence[Entry],
    preprocess: PreprocessSettings,
    storage: StorageSettings,
    fetching: FetchSettings = FetchSettings(),
    decode: DecodeSettings = DecodeSettings(),
) -> pa.Table:
    """`DECODED` for these images: fetched by a few threads ahead, decoded one after another.

    Raises `StorageError` when the store is lost, `UnfinishedError` when nothing can be decoded here.
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
    """Every entry with its bytes, in order; a bounded number, and of bounded size, is held in memory."""
    remote = any("://" in entry.uri for entry in entries)
    threads, most = (fetching.parallel, 2 * fetching.parallel) if remote else (_LOCAL_FETCHES, _LOCAL_AHEAD)
    patience = fetching.timeout_s + _GRACE_SECONDS
    pool = ThreadPoolExecutor(max_workers=threads)
    waiting: deque[tuple[Entry, Future[_Fetched]]] = deque()
    upcoming = deque(entries)
    ahead = 0
    try:
        while waiting or upcoming:
            # Many at a time: each time that a thread wakes for one, it takes a core from the model.
            room = most - len(waiting) if 2 * len(waiting) <= most else 0
            while upcoming and room > 0 and (not ahead or ahead + _size(upcoming[0]) <= _BYTES_AHEAD):
                room -= 1
                entry = upcoming.popleft()
                ahead += _size(entry)
                waiting.append((entry, pool.submit(_fetch, entry, storage, fetching)))
            entry, future = waiting.popleft()
            ahead -= _size(entry)
            try:
                fetched = future.result(patience)
            except FutureTimeoutError:
                # A file system that does not answer holds its thread for ever: the others go on in new ones.
                fetched = _Fetched(None, patience, _timeout(entry, patience))
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
    except Exception as error:  # whatever it is, it is this image's reason, not the run's end
        reason = error if isinstance(error, CaptioningError) else f"{type(error).__name__}: {error}"
        return _Fetched(None, time.perf_counter() - start, ImageError("storage", str(reason)))


def _size(entry: Entry) -> int:
    return _USUAL_BYTES if entry.size_bytes is None else entry.size_bytes


def _timeout(entry: Entry, seconds: float) -> StorageError:
    return StorageError(
        "timeout",
        f"Could not read {entry.uri}: its file system gave no answer within {seconds:g} s (fetch.timeout_s).",
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
    """Pixels (B, S, S, 3) uint8 of the B images of a `DECODED` table that were decoded."""
    images = [np.frombuffer(value.as_buffer(), np.uint8) for value in decoded.column("pixels") if value.is_valid]
    if not images:
        return np.empty((0, 0, 0, 3), np.uint8)
    side = isqrt(len(images[0]) // 3)
    return np.stack(images).reshape(-1, side, side, 3)
