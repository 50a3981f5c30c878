"""What a shard's task is given and where its result goes: all that workers need to know of the bookkeeping.

A first captioning takes a shard's images from the index and stages its rows beside the table;
doing some rows again is another book (`redo`). Knows nothing of how captions are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from captioning.run.index import Index
from captioning.run.sources import Entry
from captioning.run.staging import write_staged
from captioning.run.table import Row


class ShardBook(Protocol):
    """Small and picklable: it goes to every worker."""

    def entries(self, shard: int) -> list[Entry]:
        """The images to caption in this shard. Raises `StorageError`."""
        ...

    def stage(self, shard: int, rows: Sequence[Row]) -> None:
        """Keep the rows of exactly those images, in one atomic step. Raises `StorageError`."""
        ...


@dataclass(frozen=True)
class IndexBook:
    """A shard's first captioning: all of its images, staged to be folded."""

    index: Index

    def entries(self, shard: int) -> list[Entry]:
        """All images of the shard."""
        self.index.require_here()
        return self.index.rows(self.index.shard(shard))

    def stage(self, shard: int, rows: Sequence[Row]) -> None:
        """Write the shard's staged file."""
        self.index.require_here()
        place = self.index.shard(shard)
        write_staged(self.index.layout, place, rows, self.index.kept(place))
