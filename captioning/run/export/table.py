"""Reads the caption table in the index's order, in numbered pieces.

A piece is a range of rows of one part. Its number depends on the index alone, so that a resumed export finds its
pieces again, and a grown archive adds pieces at the end.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from captioning.errors import UnfinishedError
from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout
from captioning.run.sources import Entry
from captioning.run.table import read_part


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` (exclusive) of a part, in the index's order; `first_row` is a row of the whole index."""

    number: int
    part: PartRange
    start: int
    stop: int
    first_row: int


@dataclass(frozen=True)
class ExportRow:
    """An image of the export: its row number in the index, its entry, and its row of the table."""

    number: int
    entry: Entry
    row: dict[str, Any]

    @property
    def image_id(self) -> str:
        """The image's id."""
        return self.entry.image_id

    @property
    def failed(self) -> bool:
        """Whether the row is an error row."""
        return bool(self.row["status"] != "ok")


@dataclass
class RunTable:
    """A run's table, read one part at a time."""

    layout: RunLayout
    index: Index
    _part: PartRange | None = field(default=None, init=False)
    _rows: pa.Table | None = field(default=None, init=False)
    _positions: dict[str, int] = field(default_factory=dict, init=False)

    def pieces(self, rows_per_piece: int) -> Iterator[tuple[PartRange, list[Piece]]]:
        """The pieces of each part of the index, whether it exists or not."""
        number = 0
        for part in self.index.ranges():
            first, rows = self.index.shard(part.first).start, _rows_of(self.index, part)
            found = []
            for start in range(0, rows, rows_per_piece):
                found.append(Piece(number, part, start, min(start + rows_per_piece, rows), first + start))
                number += 1
            yield part, found

    def version(self, part: PartRange) -> str | None:
        """A string that changes when the part is rewritten; None if the part does not exist."""
        info = self.layout.part(part).info()
        if info is None:
            return None
        return hashlib.sha256(f"{info.size} {info.version}".encode()).hexdigest()[:12]

    def rows(self, piece: Piece) -> Iterator[ExportRow]:
        """The rows of a piece, in the index's order.

        Raises `StorageError`, and `UnfinishedError` for a table that lacks one of its images.
        """
        self._open(piece.part)
        assert self._rows is not None, "a part was opened"
        at = 0
        for number in piece.part.numbers:
            shard = self.index.shard(number)
            if at + shard.rows > piece.start and at < piece.stop:
                entries = self.index.rows(shard)[max(0, piece.start - at) : piece.stop - at]
                places = [self._position(entry.image_id) for entry in entries]
                rows = self._rows.take(pa.array(places, pa.int64())).to_pylist()
                first = shard.start + max(0, piece.start - at)
                for offset, (entry, row) in enumerate(zip(entries, rows, strict=True)):
                    yield ExportRow(first + offset, entry, row)
            at += shard.rows

    def ids(self) -> Iterator[list[str]]:
        """The ids of all images, one list per part."""
        for part in self.index.ranges():
            yield self.index.range_ids(part).to_pylist()

    def _open(self, part: PartRange) -> None:
        if self._part == part:
            return
        self._rows, self._positions = None, {}
        self._rows = read_part(self.layout, part)
        self._positions = {image_id: place for place, image_id in enumerate(self._rows["image_id"].to_pylist())}
        self._part = part

    def _position(self, image_id: str) -> int:
        place = self._positions.get(image_id)
        if place is None:
            raise UnfinishedError(
                f"The table in {self.layout.root} has no row for the image {image_id!r}. To see what is wrong, run: "
                f"python -m jobs verify {self.layout.root}"
            )
        return place


def _rows_of(index: Index, part: PartRange) -> int:
    return index.shard(part.last).stop - index.shard(part.first).start
