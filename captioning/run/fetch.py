"""The bytes of one image: a file, an object, or a piece of a tar. Knows nothing of what is in them."""

from captioning.errors import ImageError
from captioning.run.sources import Entry
from captioning.storage import Location, StorageSettings

#: A file beyond this many bytes is not read: no photo has so many, and it might not fit in memory.
MAX_BYTES = 1 << 30


def fetch(entry: Entry, storage: StorageSettings | None = None, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The image's bytes. Raises `StorageError`, or `ImageError` for one that is too large or cut short."""
    if entry.size_bytes is not None and entry.size_bytes > max_bytes:
        raise ImageError("too_large", f"The file has {entry.size_bytes:,} bytes; at most {max_bytes:,} are read.")
    if entry.tar is None:
        return Location.from_uri(entry.uri, storage).read_bytes()
    assert entry.offset is not None, "an image in a tar has a place"
    assert entry.size_bytes is not None, "an image in a tar has a size"
    data = Location.from_uri(entry.tar, storage).read_range(entry.offset, entry.size_bytes)
    if len(data) < entry.size_bytes:
        raise ImageError("truncated", f"The tar ends after {len(data):,} of the image's {entry.size_bytes:,} bytes.")
    return data
