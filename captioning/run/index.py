"""The index of a run: the archive's images in a fixed order, cut into shards.

    pending = write_segment(layout, sources, shard_size=None)     lists the archive
    index = pending.commit()                                      makes the segment part of the index
    index.rows(shard)                                             the entries of one shard

A segment is part of the index once its marker exists; rows and shards of a committed segment never change.
Two drivers may write the same segment: the first marker wins, and both go on with its segment.
"""

import platform
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioning.errors import InputError, StorageError
from captioning.run.layout import SHARDS_PER_PART, PartRange, RunLayout, Shard
from captioning.run.listing import Listing
from captioning.run.segment import (
    INDEX_SCHEMA,
    Segment,
    encode_schema,
    index_schema,
    marker,
    read_columns,
    read_group,
    read_kept,
    read_table,
    replace_rows,
    table_to_entries,
    write_file,
)
from captioning.run.selection import EVERYTHING, Selection
from captioning.run.sources import Entry, Source, kept_schema

#: The most images in a shard, unless a setting gives another size.
MAX_SHARD_SIZE = 512

#: A small archive is cut into about this many shards, so that every core has work until the end.
_TARGET_SHARDS = 128


def choose_shard_size(images: int) -> int:
    """Images per shard for an archive of `images`: a multiple of 8, from 8 to 512.

    Some 128 shards keep many cores busy to the end, but small shards waste a model that works in batches:
    from 256 images on each has at least 32.
    """
    least = 32 if images >= 256 else 8
    return max(least, min(MAX_SHARD_SIZE, -(-images // (_TARGET_SHARDS * 8)) * 8))


@dataclass(frozen=True)
class Index:
    """The committed segments of a run. Small and picklable: rows are read on demand."""

    layout: RunLayout
    segments: tuple[Segment, ...]

    @classmethod
    def load(cls, layout: RunLayout) -> "Index":
        """The index as of now, without segments if none is committed yet."""
        names = set(layout.index_dir.names())
        segments: list[Segment] = []
        while (where := marker(layout, len(segments))).name in names:
            segments.append(Segment.from_json(where.read_bytes(), where))
        return cls(layout, tuple(segments))

    def require_reachable(self) -> None:
        """Raise `StorageError` unless this machine sees the index.

        Called by workers: a machine that does not share a local OUTPUT would create one of its own. Object stores
        are not checked, for they are the same from everywhere.
        """
        place = self.layout.index_dir
        if place.is_local and not place.local_path.is_dir():
            raise StorageError(
                "missing",
                f"{place.path} does not exist on {platform.node()}: captions written there would be lost. "
                "Finished shards are kept. Run the command again without that machine, or with an OUTPUT that all "
                "nodes can reach: a URI (s3://…) or a folder on a shared file system.",
            )

    @property
    def rows_total(self) -> int:
        """The number of images in the archive."""
        return self.segments[-1].stop_row if self.segments else 0

    @property
    def shards_total(self) -> int:
        """The number of shards."""
        return self.segments[-1].stop_shard if self.segments else 0

    def shards(self) -> list[Shard]:
        """Every shard, in order."""
        return [seg.shard(number) for seg in self.segments for number in range(seg.first_shard, seg.stop_shard)]

    def shard(self, number: int) -> Shard:
        """The shard with this number."""
        return self._segment(number).shard(number)

    def shard_of_row(self, row: int) -> Shard:
        """The shard that contains a row of the index."""
        for segment in self.segments:
            if segment.first_row <= row < segment.stop_row:
                return segment.shard(segment.first_shard + (row - segment.first_row) // segment.shard_size)
        raise IndexError(f"the index has no row {row}")

    def ranges(self) -> list[PartRange]:
        """The ranges of shards, each of which becomes a part, in order."""
        return [part for segment in self.segments for part in segment.ranges()]

    def range_of(self, shard: int) -> PartRange:
        """The range of the part that a shard belongs to."""
        return self._segment(shard).range_of(shard)

    def rows(self, shard: Shard) -> list[Entry]:
        """The entries of one shard, in order; reads only that shard's rows. Raises `StorageError`."""
        name, group = self._segment(shard.number).file_of(shard.number)
        return read_group(self.layout, name, group, shard.rows)

    @property
    def kept_schema(self) -> pa.Schema:
        """The archive's columns that the caption table keeps (`input.keep_columns`); usually none."""
        return self.segments[0].kept_schema if self.segments else pa.schema([])

    def kept(self, shard: Shard) -> pa.Table | None:
        """The kept columns of one shard's images, in order; None when there are none."""
        schema = self.kept_schema
        if not len(schema):
            return None
        name, group = self._segment(shard.number).file_of(shard.number)
        return read_kept(self.layout, name, group, shard.rows, schema)

    def range_ids(self, part: PartRange) -> pa.ChunkedArray:
        """The image ids of all shards of a part, in order, as a column of strings."""
        name, _ = self._segment(part.first).file_of(part.first)
        return read_columns(self.layout, name, ["image_id"])["image_id"]

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows in order, one table per part; `columns` are by default those of `INDEX_SCHEMA`."""
        for segment in self.segments:
            for name in segment.files:
                yield read_columns(self.layout, name, columns or INDEX_SCHEMA.names)

    def batches(self) -> Iterator[list[Entry]]:
        """All entries in order, one list per part. For few images only: `tables` is far faster."""
        for table in self.tables():
            yield table_to_entries(table)

    def range_table(self, part: PartRange) -> pa.Table:
        """All columns of the index for the images of a part, in order."""
        return read_table(self.layout, self._segment(part.first).file_of(part.first)[0])

    def shard_numbers(self, part: PartRange) -> NDArray[np.int64]:
        """The shard number of each image of a part, in order."""
        return np.repeat(np.array(part.numbers), [self.shard(number).rows for number in part.numbers])

    def update_part(self, part: PartRange, newer: pa.Table) -> None:
        """Update location, size and version of images of a part; the images of a shard never change.

        `newer` has the columns of the index. Replaces one file of the index in one atomic step. Raises `StorageError`.
        """
        segment = self._segment(part.first)
        before = self.range_table(part)
        after = replace_rows(before, newer.select(before.schema.names))
        if not after.equals(before):
            write_file(self.layout, segment.file_of(part.first)[0], after, segment.shard_size)

    def _segment(self, shard: int) -> Segment:
        for segment in self.segments:
            if segment.first_shard <= shard < segment.stop_shard:
                return segment
        raise StorageError("missing", f"Shard {shard} is not in the index of {self.layout.root}.")


@dataclass(frozen=True)
class PendingSegment:
    """A segment whose files are written but whose marker is not: not part of the index yet."""

    index: Index
    segment: Segment

    @property
    def shard_size(self) -> int:
        """Images per shard."""
        return self.segment.shard_size

    @property
    def rows(self) -> int:
        """The number of images in the segment."""
        return self.segment.rows

    def commit(self) -> Index:
        """Write the marker, and return the index with the segment.

        If another driver committed a segment of this number first, that one is kept and the files of this
        one are deleted.
        """
        layout = self.index.layout
        marker(layout, self.segment.number).create_bytes(self.segment.to_json(), temp=layout.tmp_dir)
        index = Index.load(layout)
        _drop_leftovers(index, self.segment.number)
        return index

    def discard(self) -> None:
        """Delete the segment's files."""
        for name in self.segment.files:
            (self.index.layout.index_dir / name).delete()


def write_segment(
    layout: RunLayout,
    sources: Sequence[Source],
    *,
    shard_size: int | None = None,
    index: Index | None = None,
    selection: Selection = EVERYTHING,
) -> PendingSegment:
    """List the archive and write the selected images as the run's first segment, not committed yet.

    By default `shard_size` is chosen from the number of images. Raises `InputError` for a source without
    images, a repeated id or an empty selection, `UsageError` for a selection by unknown columns, and
    `StorageError` when a listing fails; in each case no file is left behind.
    """
    index = index or Index.load(layout)
    assert not index.segments, "a run that has an index grows (see growth)"
    selection.check(kept_schema(sources))
    listing = Listing(sources)
    pending = write_tables(index, selection.apply(listing.tables()), sources, shard_size, check=listing.check_ids)
    if not pending.rows:
        raise InputError(f"There are images, but none is selected ({selection}). Change the selection.")
    return pending


def write_tables(
    index: Index,
    tables: Iterable[pa.Table],
    sources: Sequence[Source],
    shard_size: int | None,
    *,
    check: Callable[[], None],
) -> PendingSegment:
    """Write rows of `index_schema` as the next segment of `index`, one file per part; not committed yet.

    `check` is called at the end of the listing; any error deletes the files again.
    """
    kept = kept_schema(sources)
    stream = _RowStream(tables, index_schema(kept))
    number = len(index.segments)
    token = secrets.token_hex(4)
    first_shard, rows = index.shards_total, 0
    files: list[str] = []
    try:
        # Above this number of images the choice stays the same.
        size = shard_size or choose_shard_size(stream.peek_count(MAX_SHARD_SIZE * _TARGET_SHARDS))
        shard = first_shard
        while (table := stream.take((SHARDS_PER_PART - shard % SHARDS_PER_PART) * size)).num_rows:
            if stream.ended:
                check()  # before anything is written, for a small archive
            name = f"segment-{number:04d}-{token}-{len(files):05d}.parquet"
            files.append(name)
            write_file(index.layout, name, table, size)
            rows += table.num_rows
            shard += -(-table.num_rows // size)
        check()
    except BaseException:
        for name in files:
            (index.layout.index_dir / name).delete()
        raise
    skipped: Counter[str] = Counter()
    for source in sources:
        skipped.update(source.skipped)
    segment = Segment(
        number=number,
        first_shard=first_shard,
        first_row=index.rows_total,
        rows=rows,
        shard_size=size,
        files=tuple(files),
        skipped=dict(sorted(skipped.items())),
        repeated=sum(source.repeated for source in sources),
        notes=tuple(note for source in sources for note in source.notes),
        kept=encode_schema(kept),
    )
    return PendingSegment(index, segment)


class _RowStream:
    """A stream of tables from which a given number of rows is taken at a time."""

    def __init__(self, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        self._tables = iter(tables)
        self._empty = schema.empty_table()
        self._buffer: list[pa.Table] = []
        self._count = 0
        self.ended = False
        """Whether all tables have been read: the remaining rows are buffered."""

    def peek_count(self, rows: int) -> int:
        """The number of rows to come, counted up to about `rows`."""
        while self._count < rows and not self.ended:
            table = next(self._tables, None)
            if table is None:
                self.ended = True
            else:
                self._buffer.append(table)
                self._count += table.num_rows
        return self._count

    def take(self, rows: int) -> pa.Table:
        """The next rows, fewer at the end."""
        self.peek_count(rows)
        buffered = pa.concat_tables([self._empty, *self._buffer])
        rest = buffered.slice(rows)
        self._buffer, self._count = [rest], rest.num_rows
        return buffered.slice(0, rows)


def _drop_leftovers(index: Index, number: int) -> None:
    """Delete files of committed segments that no marker names: leftovers of a killed or slower driver.

    Files of a segment that is not committed yet may be those of another driver at work.
    """
    named = {name for segment in index.segments for name in segment.files}
    for name in index.layout.index_dir.names():
        if name.endswith(".parquet") and name not in named and name < f"segment-{number + 1:04d}":
            (index.layout.index_dir / name).delete()
