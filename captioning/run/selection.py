"""Which of an archive's images a run is for: all, the first, some from all over, those that a condition holds for.

A selection is made while the archive is listed and kept in `run.json`: the index holds what it took,
and nothing else. Knows nothing of how the archive is listed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from captioning.errors import UsageError
from captioning.run.hashing import Words, text_digests
from captioning.run.segment import KEPT_PREFIX, index_schema
from captioning.run.where import Condition

#: Rows beyond the sample that gather before the sample is drawn anew.
_SLACK = 131_072


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The images to take of those that are listed. Without any of these: all of them.

    `where` is a condition on columns of the index and on those kept of the archive. Of the images
    that it holds for, the first `limit` are taken, or `sample` from all over: those whose ids have
    the least digests under `seed`, so that the same archive gives the same sample.
    """

    limit: int | None = None
    sample: int | None = None
    where: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.sample is not None:
            raise UsageError("--limit and --sample were both given: the first images, or some from all over? Give one.")
        for name, count in (("--limit", self.limit), ("--sample", self.sample)):
            if count is not None and count < 1:
                raise UsageError(f"{name} is {count}: give the number of images to take, 1 or more.")
        if self.where is not None:
            Condition.parse(self.where, None)

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        return self != EVERYTHING

    def __str__(self) -> str:
        return " ".join(f"--{name} {value}" for name, value in self.to_dict().items() if name != "seed") or "all images"

    def check(self, kept: pa.Schema) -> None:
        """Raise `UsageError` for a `where` of columns that neither the index has nor the archive with these `kept`."""
        if self.where is not None:
            _condition(self.where, index_schema(kept))

    @property
    def grows(self) -> bool:
        """Whether images that come into the archive later are taken too: not where a number was asked for."""
        return self.limit is None and self.sample is None

    @property
    def most(self) -> int | None:
        """The most images that it takes; None: no bound."""
        return self.limit if self.limit is not None else self.sample

    def to_dict(self) -> dict[str, Any]:
        """What `run.json` keeps of it: what was given, nothing for all images."""
        given = {"limit": self.limit, "sample": self.sample, "where": self.where}
        kept = {name: value for name, value in given.items() if value is not None}
        return kept | {"seed": self.seed} if self.sample is not None else kept

    def of(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The rows to take, in their order. Does not look further than it must."""
        if self.where is not None:
            tables = _fulfilling(tables, self.where)
        if self.sample is not None:
            return iter(_sampled(tables, self.sample, self.seed))
        return iter(tables) if self.limit is None else _first(tables, self.limit)


EVERYTHING = Selection()


def _condition(where: str, schema: pa.Schema) -> Condition:
    """Over the columns of the index, and those kept of the archive under the names that they have there."""
    return Condition.parse(where, schema, {name.removeprefix(KEPT_PREFIX): name for name in schema.names})


def _fulfilling(tables: Iterable[pa.Table], where: str) -> Iterator[pa.Table]:
    condition: Condition | None = None
    for table in tables:
        condition = condition or _condition(where, table.schema)
        yield condition.filter(table)


def _first(tables: Iterable[pa.Table], count: int) -> Iterator[pa.Table]:
    for table in tables:
        yield table.slice(0, min(count, table.num_rows))
        count -= table.num_rows
        if count <= 0:
            return


def _sampled(tables: Iterable[pa.Table], count: int, seed: int) -> list[pa.Table]:
    """The `count` rows with the least digests, in their order; memory for about twice as many."""
    held: list[tuple[pa.Table, Words]] = []
    rows, most = 0, np.uint64(2**64 - 1)
    for table in tables:
        drawn = text_digests(table["image_id"], key=seed)["high"]
        few = drawn <= most
        held.append((table.filter(pa.array(few)), drawn[few]))
        rows += len(held[-1][1])
        if rows >= 2 * count + _SLACK:
            held, most = _least(held, count)
            rows = sum(len(numbers) for _, numbers in held)
    return [table for table, _ in _least(held, count)[0]]


def _least(held: list[tuple[pa.Table, Words]], count: int) -> tuple[list[tuple[pa.Table, Words]], np.uint64]:
    """What remains of the tables when the `count` least numbers are kept, and the greatest of these."""
    numbers = np.concatenate([np.empty(0, np.uint64), *(numbers for _, numbers in held)])
    if len(numbers) <= count:
        return held, np.uint64(2**64 - 1)
    most = np.uint64(np.partition(numbers, count - 1)[count - 1])
    kept = [(table.filter(pa.array(numbers <= most)), numbers[numbers <= most]) for table, numbers in held]
    # One table instead of many slivers; rows that are dropped leave the memory with their old tables.
    return [(pa.concat_tables([t for t, _ in kept]).combine_chunks(), np.concatenate([n for _, n in kept]))], most
