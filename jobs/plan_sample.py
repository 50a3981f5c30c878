"""What `plan` takes from an archive: its size, and a sample from all over it.

The archive is listed once as a stream. Nothing is written; the sample is held in memory, and is
an index of its own for the pipeline. Knows nothing of captioners.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from captioning.run.index import Index, checked_entries
from captioning.run.layout import RunLayout, Shard
from captioning.run.segment import INDEX_SCHEMA, Segment
from captioning.run.sources import Entry, Source

_BATCH = 4096
#: Entries whose size as an index is measured.
_MEASURED = 32_768


@dataclass(frozen=True)
class Survey:
    """An archive as `plan` sees it.

    `bytes_known` are the sizes that the listing told, of `sized` images. The sample is in random
    order: any first part of it is from all over the archive. `index_bytes` is what the index of the
    whole will have, about.
    """

    images: int
    bytes_known: int
    sized: int
    sample: tuple[Entry, ...]
    index_bytes: int

    @property
    def bytes_total(self) -> int | None:
        """Bytes of the archive, those of unknown size taken as the others; None when none is known."""
        return round(self.bytes_known / self.sized * self.images) if self.sized else None


def survey(sources: Sequence[Source], most: int) -> Survey:
    """List the archive and draw `most` images evenly from it, always the same ones.

    Raises `InputError` and `StorageError` as `caption` would.
    """
    return draw(checked_entries(sources), most)


def draw(entries: Iterable[Entry], most: int) -> Survey:
    """`survey` for a stream of entries: those with the `most` lowest of random numbers are kept."""
    numbers = np.random.default_rng(0)
    keys, kept = np.empty(0), list[Entry]()
    images = known = sized = 0
    index_bytes = 0.0
    stream = iter(entries)
    while batch := list(islice(stream, _BATCH)):
        images += len(batch)
        if images <= _MEASURED:
            index_bytes += _index_bytes(batch)
            measured = images
        for entry in batch:
            if entry.size_bytes is not None:
                known += entry.size_bytes
                sized += 1
        keys, kept = np.concatenate([keys, numbers.random(len(batch))]), [*kept, *batch]
        if len(kept) > 2 * most:
            keys, kept = _lowest(keys, kept, most)
    keys, kept = _lowest(keys, kept, most)
    return Survey(images, known, sized, tuple(kept), round(index_bytes / measured * images) if images else 0)


def _lowest(keys: NDArray[np.float64], kept: list[Entry], most: int) -> tuple[NDArray[np.float64], list[Entry]]:
    order = np.argsort(keys, kind="stable")[:most]
    return keys[order], [kept[place] for place in order]


def _index_bytes(entries: Sequence[Entry]) -> int:
    columns = {name: [getattr(entry, name) for entry in entries] for name in INDEX_SCHEMA.names}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pydict(columns, schema=INDEX_SCHEMA), buffer, compression="zstd")
    return buffer.tell()


@dataclass(frozen=True)
class SampleIndex(Index):
    """An index that is not on disk: the entries of a sample, in shards of equal size."""

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

    def rows(self, shard: Shard) -> list[Entry]:
        """The entries of one shard."""
        return list(self.entries[shard.start : shard.stop])
