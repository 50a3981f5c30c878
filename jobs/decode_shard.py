"""One shard of an archive from index rows to pixels: fetched and decoded, or a reason why not.

Runs in Ray Data's CPU tasks. Knows images and where they are; knows nothing of the model beyond
its preprocessing. An image that fails is a row with a reason: nothing raised for one image gets out.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import isqrt
from typing import Any

import numpy as np
import pyarrow as pa

from captioning.data.preprocess import Preprocess, PreprocessSettings
from captioning.errors import ImageError, StorageError
from captioning.run.fetch import fetch
from captioning.run.index import Index
from captioning.run.sources import Entry
from captioning.storage import StorageSettings

#: Fetches under way at once in a task. Local disks need few; object stores answer slowly and in parallel.
_LOCAL_FETCHES, _REMOTE_FETCHES = 2, 16

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

    index: Index
    preprocess: PreprocessSettings
    storage: StorageSettings

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`DECODED` for the shard that the batch names."""
        [number] = batch.column("shard").to_pylist()
        entries = self.index.rows(self.index.shard(number))
        return decode_entries(number, entries, self.preprocess, self.storage)


def decode_entries(
    number: int, entries: Sequence[Entry], preprocess: PreprocessSettings, storage: StorageSettings
) -> pa.Table:
    """`DECODED` for these images: fetched by a few threads ahead, decoded one after another."""
    to_pixels = Preprocess(preprocess)
    return pa.Table.from_pylist(
        [_row(number, entry, data, to_pixels) for entry, data in _fetched(entries, storage)], schema=DECODED
    )


@dataclass(frozen=True)
class _Fetched:
    data: bytes | None
    seconds: float
    error_class: str | None = None
    error_message: str | None = None


def _fetched(entries: Sequence[Entry], storage: StorageSettings) -> Iterator[tuple[Entry, _Fetched]]:
    """Every entry with its bytes, in order; a bounded number is held in memory."""
    threads = _REMOTE_FETCHES if any("://" in entry.uri for entry in entries) else _LOCAL_FETCHES
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting: deque[tuple[Entry, Future[_Fetched]]] = deque()
        upcoming = iter(entries)
        for entry in islice(upcoming, 2 * threads):
            waiting.append((entry, pool.submit(_fetch, entry, storage)))
        while waiting:
            entry, future = waiting.popleft()
            yield entry, future.result()
            for following in islice(upcoming, 1):
                waiting.append((following, pool.submit(_fetch, following, storage)))


def _fetch(entry: Entry, storage: StorageSettings) -> _Fetched:
    start = time.perf_counter()
    try:
        data = fetch(entry, storage)
        return _Fetched(data, time.perf_counter() - start)
    except (StorageError, ImageError) as error:
        return _Fetched(None, time.perf_counter() - start, error.error_class, error.message)
    except Exception as error:  # whatever it is, it is this image's reason, not the run's end
        return _Fetched(None, time.perf_counter() - start, "storage", f"{type(error).__name__}: {error}")


def _row(number: int, entry: Entry, fetched: _Fetched, to_pixels: Preprocess) -> dict[str, Any]:
    row: dict[str, Any] = {
        "shard": number,
        "image_id": entry.image_id,
        "uri": entry.uri,
        "size_bytes": entry.size_bytes,
        "error_class": fetched.error_class,
        "error_message": fetched.error_message,
        "fetch_seconds": fetched.seconds,
        "decode_seconds": 0.0,
    }
    if fetched.data is None:
        return row
    row["size_bytes"] = len(fetched.data)
    start = time.perf_counter()
    try:
        image = to_pixels.from_bytes(fetched.data)
        row |= {"pixels": image.pixels.tobytes(), "width": image.width, "height": image.height}
    except ImageError as error:
        row |= {"error_class": error.error_class, "error_message": error.message}
    except Exception as error:  # a decoder's own fault: a reason like any other
        row |= {"error_class": "decode", "error_message": f"{type(error).__name__}: {error}"}
    row["decode_seconds"] = time.perf_counter() - start
    return row


def pixels_of(decoded: pa.Table) -> np.ndarray[Any, Any]:
    """Pixels (B, S, S, 3) uint8 of the B images of a `DECODED` table that were decoded."""
    images = [np.frombuffer(value.as_buffer(), np.uint8) for value in decoded.column("pixels") if value.is_valid]
    if not images:
        return np.empty((0, 0, 0, 3), np.uint8)
    side = isqrt(len(images[0]) // 3)
    return np.stack(images).reshape(-1, side, side, 3)
