"""Fetches the bytes of exported images, a few ahead of the one that is written."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from captioning.errors import CaptioningError
from captioning.run.export.table import ExportRow
from captioning.run.fetch import fetch
from captioning.storage import StorageSettings

_THREADS = 12


def fetch_ahead(rows: Iterable[ExportRow], storage: StorageSettings) -> Iterator[tuple[ExportRow, bytes | str]]:
    """Every row with its image's bytes, in order, or with the error message if they cannot be read."""
    upcoming = iter(rows)
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[tuple[ExportRow, Future[bytes | str]]] = deque()
        for row in islice(upcoming, 2 * _THREADS):
            waiting.append((row, pool.submit(_fetch, row, storage)))
        while waiting:
            row, future = waiting.popleft()
            yield row, future.result()
            for following in islice(upcoming, 1):
                waiting.append((following, pool.submit(_fetch, following, storage)))


def _fetch(row: ExportRow, storage: StorageSettings) -> bytes | str:
    try:
        return fetch(row.entry, storage)
    except CaptioningError as error:
        return str(error)
