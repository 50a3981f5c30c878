"""Tells failures of single images from the loss of a whole store, which stops the run.

Revoked credentials or a network outage in the middle of a run would turn every remaining image into an error row.
So when an image cannot be read, an object that was read before is read again as a control: if this fails as well,
the run stops, and can be resumed later.
"""

import time

from captioning.errors import ImageError, StorageError
from captioning.run.fetch import FetchSettings
from captioning.run.sources import Entry
from captioning.storage import Location, StorageSettings

#: Error classes that can affect a whole store.
_STORE_ERRORS = frozenset({"forbidden", "network", "throttled", "timeout"})
#: Seconds after a successful read for which a store counts as available.
_TRUSTED_SECONDS = 10.0

#: By store: an object that this process has read, and the time of the last successful read.
_known: dict[tuple[StorageSettings, str], tuple[Location, float]] = {}


class StoreWatch:
    """Watches the reads of one shard."""

    def __init__(self, storage: StorageSettings, fetching: FetchSettings) -> None:
        self._storage, self._fetching = storage, fetching
        self._reads = 0
        self._last: StorageError | None = None

    def read(self, entry: Entry) -> None:
        """Record that an image was read."""
        self._reads += 1
        location = self._location(entry)
        if not location.is_local:
            _known[self._key(location)] = (location, time.monotonic())

    def failed(self, entry: Entry, error: StorageError | ImageError) -> None:
        """Record that an image could not be read. Raises `StorageError` if its store cannot be read at all."""
        if not isinstance(error, StorageError):
            self._reads += 1
            return
        location = self._location(entry)
        is_web = location.path.startswith(("http://", "https://"))
        if error.error_class == "credentials" and not location.is_local and not is_web:
            raise _lost(error)
        if error.error_class not in _STORE_ERRORS or location.is_local or is_web:
            self._reads += 1
            return
        if error.transient:
            self._last = error
        control, seen = _known.get(self._key(location), (None, 0.0))
        if control is None or time.monotonic() - seen < _TRUSTED_SECONDS:
            return
        try:
            control.read_range(0, 1, retry=self._fetching.retry_policy)
        except StorageError as again:
            if again.error_class in _STORE_ERRORS | {"credentials"}:
                raise _lost(again) from again
        else:
            _known[self._key(location)] = (control, time.monotonic())

    def finish(self) -> None:
        """End the shard. Raises `StorageError` if every read failed with an error of a whole store."""
        if self._last is not None and not self._reads:
            raise _lost(self._last) from self._last

    def _location(self, entry: Entry) -> Location:
        return Location.from_uri(entry.table or entry.tar or entry.uri, self._storage)

    def _key(self, location: Location) -> tuple[StorageSettings, str]:
        scheme, _, rest = location.path.partition("://")
        return self._storage, f"{scheme}://{rest.partition('/')[0]}"


def _lost(error: StorageError) -> StorageError:
    return StorageError(
        error.error_class, f"The images' storage cannot be read. {error.message}", transient=error.transient
    )
