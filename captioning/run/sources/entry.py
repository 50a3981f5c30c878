"""One image of an archive: its id, and where its bytes are. Knows nothing of how it was found."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One image of the archive.

    `size_bytes` is None when the listing does not say (a line of a text list); `version` changes
    with the content (an ETag, a time of modification) and is empty when not known. For an image in
    a tar, `tar` is the tar's URI, `offset` the place of the image's first byte in it, and `version`
    the time that the tar gives it: a tar that is added to changes no image that was in it. For an
    image whose bytes lie in a Parquet or Arrow file, `table` is the file's URI, `column` and `row`
    (from 0) say which cell. `kept` are the values of the columns that were asked for
    (`kept_schema`), Arrow arrays of one value or None; they are for the index, and do not come back from it.
    """

    image_id: str
    uri: str
    size_bytes: int | None = None
    version: str = ""
    tar: str | None = None
    offset: int | None = None
    table: str | None = None
    column: str | None = None
    row: int | None = None
    kept: tuple[Any, ...] = field(default=(), compare=False, repr=False)
