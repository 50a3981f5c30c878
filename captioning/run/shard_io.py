"""A shard's input and output as workers see them: its images, and where its rows are staged.

`IndexShardIO` captions a shard for the first time; `redo.RedoShardIO` captions some of its rows again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from captioning.run.index import Index
from captioning.run.sources import Entry
from captioning.run.staging import write_staged
from captioning.run.table import Row


class ShardIO(Protocol):
    """Reads and writes shards of a run. Small and picklable: it is sent to every worker."""

    def entries(self, shard: int) -> list[Entry]:
        """The images to caption in this shard. Raises `StorageError`."""
        ...

    def stage(self, shard: int, rows: Sequence[Row]) -> None:
        """Stage the rows of exactly those images, in one atomic step. Raises `StorageError`."""
        ...


@dataclass(frozen=True)
class IndexShardIO:
    """All images of a shard, read from the index and staged to be folded."""

    index: Index

    def entries(self, shard: int) -> list[Entry]:
        """All images of the shard."""
        self.index.require_reachable()
        return self.index.rows(self.index.shard(shard))

    def stage(self, shard: int, rows: Sequence[Row]) -> None:
        """Write the shard's staged file."""
        self.index.require_reachable()
        staged = self.index.shard(shard)
        write_staged(self.index.layout, staged, rows, self.index.kept(staged))
