"""The progress of a run, from its file names alone: quick for an archive of any size.

It counts shards and their images; rows are not read.
"""

from dataclasses import dataclass

from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout


@dataclass(frozen=True)
class RunProgress:
    """Counts of a run: of `images` in the index, `done` have a row, in one of `parts` or of `staged` shards."""

    images: int
    done: int
    shards: int
    shards_done: int
    parts: int
    parts_total: int
    staged: int

    @property
    def pending(self) -> int:
        """Images without a row."""
        return self.images - self.done

    @property
    def finished(self) -> bool:
        """Whether every image has its row in the table."""
        return self.images > 0 and self.parts == self.parts_total


def run_progress(layout: RunLayout) -> RunProgress:
    """The progress of the run in `layout`. Raises `StorageError`."""
    index = Index.load(layout)
    # List staged files first: a shard that is folded in between is then found in its part.
    staged = layout.staged_numbers()
    present = set(layout.parts())
    ranges = index.ranges()
    parts = [part for part in ranges if part in present]
    folded = {number for part in parts for number in part.numbers}
    unfolded = [number for number in staged if number < index.shards_total and number not in folded]
    done = sum(_images(index, part) for part in parts) + sum(index.shard(number).rows for number in unfolded)
    return RunProgress(
        images=index.rows_total,
        done=done,
        shards=index.shards_total,
        shards_done=sum(len(part.numbers) for part in parts) + len(unfolded),
        parts=len(parts),
        parts_total=len(ranges),
        staged=len(unfolded),
    )


def _images(index: Index, part: PartRange) -> int:
    return index.shard(part.last).stop - index.shard(part.first).start
