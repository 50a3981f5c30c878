"""Text lists of images: a path or URI on each line."""

from collections.abc import Iterator
from typing import BinaryIO

from captioning.errors import InputError
from captioning.run.digests import DigestSet, digests
from captioning.run.sources.base import Source
from captioning.run.sources.entry import Entry
from captioning.run.sources.uris import locate
from captioning.storage import Location, escape_name
from captioning.storage_errors import storage_errors

#: A longer line is neither a path nor a URI.
_MAX_LINE_BYTES = 1 << 16


class ListSource(Source):
    """A text file with a path or URI on each line; the id is the line.

    Paths are relative to the list's own folder. Empty lines are skipped; repeated lines are skipped and counted.
    The file is read as a stream.
    """

    kind = "lists"
    suffixes = (".txt",)

    def _entries(self) -> Iterator[Entry]:
        for _, location in self._containers():
            yield from self._lines(location)

    def _lines(self, location: Location) -> Iterator[Entry]:
        seen = DigestSet()
        with storage_errors(location.uri, "read"), location.open_read() as file:
            for number, line in _numbered(file, location):
                image_id = escape_name(line)
                if not seen.add(digests([image_id]))[0]:
                    self.repeated += 1
                    continue
                found = locate(line, location.parent, where=f"line {number:,} of {location}")
                yield Entry(self.prefix + image_id, found.uri)


def _numbered(file: BinaryIO, location: Location) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, numbered from 1."""
    number = 0
    while raw := file.readline(_MAX_LINE_BYTES):
        number += 1
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise InputError(f"The list {location} is UTF-16 text. Save it as UTF-8.")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) == _MAX_LINE_BYTES or b"\0" in raw:
            raise InputError(
                f"Line {number:,} of {location} is neither a path nor a URI. A .txt INPUT is a list with "
                "one on each line."
            )
        if line := raw.decode("utf-8", "surrogateescape").strip():
            yield number, line
