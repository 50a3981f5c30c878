"""Where a run stands, told from the names of its files alone: quick for an archive of any size.

Knows which shards are done and how many images are in them; nothing of what their rows say.
"""

from dataclasses import dataclass

from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout


@dataclass(frozen=True)
class Standing:
    """Counts of a run: of `images` indexed, `done` have their row, in `parts` of the table or in `staged` shards."""

    images: int
    done: int
    shards: int
    shards_done: int
    parts: int
    parts_in_all: int
    staged: int

    @property
    def pending(self) -> int:
        """Images without a row."""
        return self.images - self.done

    @property
    def finished(self) -> bool:
        """Whether every image has its row, in the table."""
        return self.images > 0 and self.parts == self.parts_in_all


def standing(layout: RunLayout) -> Standing:
    """Where the run in `layout` stands. Raises `StorageError`."""
    index = Index.load(layout)
    # Staged files are listed first: a shard that is folded in between is then seen in its part.
    staged = layout.staged_numbers()
    present = set(layout.parts())
    ranges = index.ranges()
    parts = [part for part in ranges if part in present]
    folded = {number for part in parts for number in part.numbers}
    waiting = [number for number in staged if number < index.shards_total and number not in folded]
    done = sum(_images(index, part) for part in parts) + sum(index.shard(number).rows for number in waiting)
    return Standing(
        images=index.rows_total,
        done=done,
        shards=index.shards_total,
        shards_done=sum(len(part.numbers) for part in parts) + len(waiting),
        parts=len(parts),
        parts_in_all=len(ranges),
        staged=len(waiting),
    )


def _images(index: Index, part: PartRange) -> int:
    return index.shard(part.last).stop - index.shard(part.first).start
