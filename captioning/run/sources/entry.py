"""One image of an archive: its id, and where its bytes are."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One image of the archive.

    `size_bytes` is None if the listing does not have it (a line of a text list); `version` changes with the
    content (an ETag, a modification time) and is empty if unknown. For an image in a tar, `tar` is the tar's URI,
    `offset` the position of the image's first byte in it, and `version` the member's time, so that adding to a tar
    changes none of its images. For an image in a Parquet or Arrow file, `table` is the file's URI, `column` and
    `row` (from 0) its cell. `kept` are the values of the kept columns (`kept_schema`), Arrow arrays of one value or
    None; they are written to the index, but entries read from it do not have them.
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
