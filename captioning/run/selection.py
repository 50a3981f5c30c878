"""Selects the images of an archive to caption: all, the first N, a sample, or those that satisfy a condition.

A selection is applied while the archive is listed and recorded in `run.json`: the index has only the selected
images.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from captioning.errors import UsageError
from captioning.run.hashing import UInt64Array, text_digests
from captioning.run.segment import KEPT_PREFIX, index_schema
from captioning.run.where import Condition

#: Rows buffered beyond twice the sample before it is reduced.
_SLACK = 131_072


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The images to take of those that are listed; by default all of them.

    `where` is a condition on columns of the index and on the kept ones. Of the images that satisfy it, the first
    `limit` are taken, or a `sample`: those whose ids have the smallest digests under `seed`, so that the same
    archive gives the same sample.
    """

    limit: int | None = None
    sample: int | None = None
    where: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.sample is not None:
            raise UsageError(
                "--limit (the first images) and --sample (random ones) cannot be combined: pass one of them."
            )
        for name, count in (("--limit", self.limit), ("--sample", self.sample)):
            if count is not None and count < 1:
                raise UsageError(f"{name} is {count}: pass the number of images to take, 1 or more.")
        if self.where is not None:
            Condition.parse(self.where, None)

    def __bool__(self) -> bool:
        """Whether it excludes anything."""
        return self != EVERYTHING

    def __str__(self) -> str:
        return " ".join(f"--{name} {value}" for name, value in self.to_dict().items() if name != "seed") or "all images"

    def check(self, kept: pa.Schema) -> None:
        """Raise `UsageError` for a `where` with columns that are neither in the index nor in `kept`."""
        if self.where is not None:
            _condition(self.where, index_schema(kept))

    @property
    def takes_new_images(self) -> bool:
        """Whether images added to the archive later are taken too: not with a limit or a sample."""
        return self.limit is None and self.sample is None

    @property
    def max_images(self) -> int | None:
        """The most images that it takes; None for no limit."""
        return self.limit if self.limit is not None else self.sample

    def to_dict(self) -> dict[str, Any]:
        """The value for `run.json`: the options that were given, empty for all images."""
        given = {"limit": self.limit, "sample": self.sample, "where": self.where}
        kept = {name: value for name, value in given.items() if value is not None}
        return kept | {"seed": self.seed} if self.sample is not None else kept

    def apply(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The selected rows, in order. Reads no more tables than necessary."""
        if self.where is not None:
            tables = _matching(tables, self.where)
        if self.sample is not None:
            return iter(_sampled(tables, self.sample, self.seed))
        return iter(tables) if self.limit is None else _first(tables, self.limit)


EVERYTHING = Selection()


def _condition(where: str, schema: pa.Schema) -> Condition:
    """The condition over the columns of the index, and the kept ones under their own names."""
    return Condition.parse(where, schema, {name.removeprefix(KEPT_PREFIX): name for name in schema.names})


def _matching(tables: Iterable[pa.Table], where: str) -> Iterator[pa.Table]:
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
    """The `count` rows with the smallest digests, in order; needs memory for about twice as many."""
    held: list[tuple[pa.Table, UInt64Array]] = []
    rows, most = 0, np.uint64(2**64 - 1)
    for table in tables:
        drawn = text_digests(table["image_id"], key=seed)["high"]
        few = drawn <= most
        held.append((table.filter(pa.array(few)), drawn[few]))
        rows += len(held[-1][1])
        if rows >= 2 * count + _SLACK:
            held, most = _keep_smallest(held, count)
            rows = sum(len(numbers) for _, numbers in held)
    return [table for table, _ in _keep_smallest(held, count)[0]]


def _keep_smallest(
    held: list[tuple[pa.Table, UInt64Array]], count: int
) -> tuple[list[tuple[pa.Table, UInt64Array]], np.uint64]:
    """The rows of the tables with the `count` smallest numbers, and the largest of these numbers."""
    numbers = np.concatenate([np.empty(0, np.uint64), *(numbers for _, numbers in held)])
    if len(numbers) <= count:
        return held, np.uint64(2**64 - 1)
    most = np.uint64(np.partition(numbers, count - 1)[count - 1])
    kept = [(table.filter(pa.array(numbers <= most)), numbers[numbers <= most]) for table, numbers in held]
    # Combined into one table, so that the memory of dropped rows is freed with their old tables.
    return [(pa.concat_tables([t for t, _ in kept]).combine_chunks(), np.concatenate([n for _, n in kept]))], most
