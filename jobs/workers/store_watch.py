"""Whose fault a failed read is: the image's, or that of a store which is lost as a whole.

Keys that are revoked, or a network that is gone, in the middle of a run would make an error row of
every image that is left. So when an image cannot be read, one that could be is read again: if that
one fails as well, the run stops, and goes on later where it was. Knows nothing of images.
"""

import time

from captioning.errors import ImageError, StorageError
from captioning.run.fetch import FetchSettings
from captioning.run.sources import Entry
from captioning.storage import Location, StorageSettings

#: Failures that a whole store can have at once.
_OF_STORES = frozenset({"forbidden", "network", "throttled", "timeout"})
#: Seconds for which a store that gave an answer counts as there.
_TRUSTED_SECONDS = 10.0

#: Stores as this process met them: an object that could be read, and when that was last so.
_known: dict[tuple[StorageSettings, str], tuple[Location, float]] = {}


class StoreWatch:
    """Watches the reads of one shard."""

    def __init__(self, storage: StorageSettings, fetching: FetchSettings) -> None:
        self._storage, self._fetching = storage, fetching
        self._reads = 0
        self._last: StorageError | None = None

    def read(self, entry: Entry) -> None:
        """An image could be read."""
        self._reads += 1
        location = self._location(entry)
        if not location.is_local:
            _known[self._key(location)] = (location, time.monotonic())

    def failed(self, entry: Entry, error: StorageError | ImageError) -> None:
        """An image could not be read. Raises `StorageError` when its store cannot be read any more at all."""
        if not isinstance(error, StorageError):
            self._reads += 1
            return
        location = self._location(entry)
        of_web = location.path.startswith(("http://", "https://"))
        if error.error_class == "credentials" and not location.is_local and not of_web:
            raise _lost(error)
        if error.error_class not in _OF_STORES or location.is_local or of_web:
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
            if again.error_class in _OF_STORES | {"credentials"}:
                raise _lost(again) from again
        else:
            _known[self._key(location)] = (control, time.monotonic())

    def finish(self) -> None:
        """The shard is through. Raises `StorageError` when every read failed as reads from a dead store do."""
        if self._last is not None and not self._reads:
            raise _lost(self._last) from self._last

    def _location(self, entry: Entry) -> Location:
        return Location.from_uri(entry.table or entry.tar or entry.uri, self._storage)

    def _key(self, location: Location) -> tuple[StorageSettings, str]:
        scheme, _, rest = location.path.partition("://")
        return self._storage, f"{scheme}://{rest.partition('/')[0]}"


def _lost(error: StorageError) -> StorageError:
    return StorageError(
        error.error_class, f"The images' store cannot be read any more. {error.message}", transient=error.transient
    )
