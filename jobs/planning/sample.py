"""Surveys an archive for `plan`: its size, and a sample from all over it.

The archive is listed once as a stream. The sample is held in memory, as an index for the pipeline.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from captioning.run.index import Index
from captioning.run.layout import RunLayout, Shard
from captioning.run.listing import Listing
from captioning.run.segment import INDEX_SCHEMA, Segment
from captioning.run.sources import Entry, Source

#: Rows beyond the sample that are collected before it is reduced.
_SLACK = 65_536
#: Entries from which the size of the index is extrapolated.
_MEASURED = 32_768


@dataclass(frozen=True)
class Survey:
    """An archive as `plan` sees it.

    `bytes_known` is the total size of the `sized` images whose size the listing gave. The sample is in
    random order, so any prefix of it is a sample too. `index_bytes` is the approximate size of the whole
    index, and `kept_bytes` what columns kept from the archive add to the table.
    """

    images: int
    bytes_known: int
    sized: int
    sample: tuple[Entry, ...]
    index_bytes: int
    kept_bytes: int = 0

    @property
    def bytes_total(self) -> int | None:
        """Bytes of the archive, extrapolated to images of unknown size; None when no size is known."""
        return round(self.bytes_known / self.sized * self.images) if self.sized else None


def survey_archive(sources: Sequence[Source], most: int) -> Survey:
    """List the archive and draw `most` images uniformly from it, always the same ones.

    Raises `InputError` and `StorageError` as `caption` would.
    """
    listing = Listing(sources)
    found = draw_sample(listing.tables(), most)
    listing.check_ids()
    return found


def draw_sample(tables: Iterable[pa.Table], most: int) -> Survey:
    """`survey_archive` for rows of the index: keeps those with the `most` lowest random numbers."""
    numbers = np.random.default_rng(0)
    keys, kept = np.empty(0), INDEX_SCHEMA.empty_table()
    images = known = sized = 0
    index_bytes = kept_bytes = measured = 0
    for table in tables:
        images += table.num_rows
        bare = table.select(INDEX_SCHEMA.names)
        if measured < _MEASURED:
            index_bytes += _index_bytes(table)
            if table.num_columns > bare.num_columns:
                kept_bytes += _index_bytes(table.drop_columns(INDEX_SCHEMA.names))
            measured = images
        sized += table.num_rows - table["size_bytes"].null_count
        known += pc.sum(table["size_bytes"]).as_py() or 0
        keys = np.concatenate([keys, numbers.random(table.num_rows)])
        kept = pa.concat_tables([kept, bare])
        if len(keys) > 2 * most + _SLACK:
            keys, kept = _lowest(keys, kept, most)
    keys, kept = _lowest(keys, kept, most)
    entries = tuple(Entry(**row) for row in kept.to_pylist())
    scale = images / measured if measured else 0.0
    return Survey(images, known, sized, entries, round(index_bytes * scale), round(kept_bytes * scale))


def _lowest(keys: NDArray[np.float64], kept: pa.Table, most: int) -> tuple[NDArray[np.float64], pa.Table]:
    order = np.argsort(keys, kind="stable")[:most]
    return keys[order], kept.take(pa.array(order))


def _index_bytes(table: pa.Table) -> int:
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="zstd", row_group_size=512, use_dictionary=["tar"], write_statistics=False
    )
    return buffer.tell()


@dataclass(frozen=True)
class SampleIndex(Index):
    """An in-memory index: the entries of a sample, in shards of equal size."""

    entries: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, entries: Sequence[Entry], shard_size: int, layout: RunLayout) -> "SampleIndex":
        """The sample in shards of `shard_size`; their results go to `layout`."""
        segment = Segment(
            number=0,
            first_shard=0,
            first_row=0,
            rows=len(entries),
            shard_size=shard_size,
            files=(),
            skipped={},
            repeated=0,
            notes=(),
        )
        return cls(layout, (segment,), tuple(entries))

    def require_reachable(self) -> None:
        """Does nothing: this index is not on disk."""

    def rows(self, shard: Shard) -> list[Entry]:
        """The entries of one shard."""
        return list(self.entries[shard.start : shard.stop])
