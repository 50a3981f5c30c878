"""Joins two caption tables by `image_id`, in bounded memory, whatever the order of their rows.

A partitioned hash join: rows are split into buckets by a hash of the id, in temporary files where there is
more than one, and joined a bucket at a time, so that memory holds one bucket of each table.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from captioning.run.digests import Digests, find
from captioning.run.hashing import text_digests

#: The columns that are compared.
COLUMNS = ("image_id", "uri", "caption", "score", "status", "error_class", "error_message", "size_bytes")

#: Average rows per bucket, and the most buckets; twice as many files are open at once.
BUCKET_ROWS, MOST_BUCKETS = 250_000, 256


@dataclass(frozen=True)
class JoinedBucket:
    """A bucket: matching rows of the two tables, aligned, and rows whose id only one table has."""

    matched: tuple[pa.Table, pa.Table]
    unmatched: tuple[pa.Table, pa.Table]
    digests: Digests
    """Of the ids in `matched`; the same in every process, so usable for sampling."""


def join(
    one: Iterable[pa.Table], other: Iterable[pa.Table], rows: int, bucket_rows: int = BUCKET_ROWS
) -> Iterator[JoinedBucket]:
    """Join two streams of tables with `COLUMNS`; the longer one has about `rows` rows.

    Within a bucket, rows are in the first table's order.
    """
    buckets = max(1, min(MOST_BUCKETS, -(-rows // bucket_rows)))
    with tempfile.TemporaryDirectory(prefix="captioning-compare-") as folder:
        sides = [_partition(tables, buckets, Path(folder), name) for tables, name in ((one, "one"), (other, "other"))]
        for bucket in range(buckets):
            yield _join_bucket(*(side[bucket].take() for side in sides))


class _Bucket:
    """Rows held in memory or in a file until they are taken."""

    def __init__(self, held: list[pa.Table], file: Path | None) -> None:
        self._held, self._file = held, file

    def take(self) -> pa.Table:
        """Return the rows and release them."""
        if self._file is None:
            held, self._held = self._held, []
            return pa.concat_tables([_EMPTY, *held])
        with pa.OSFile(str(self._file)) as source:
            table = ipc.open_file(source).read_all()
        self._file.unlink()
        return table


def _partition(tables: Iterable[pa.Table], buckets: int, folder: Path, name: str) -> list[_Bucket]:
    if buckets == 1:
        return [_Bucket([table.select(COLUMNS).cast(_SCHEMA) for table in tables], None)]
    files = [folder / f"{name}-{bucket:03d}.arrow" for bucket in range(buckets)]
    options = ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as stack:
        writers = [stack.enter_context(ipc.new_file(str(file), _SCHEMA, options=options)) for file in files]
        for table in tables:
            rows = table.select(COLUMNS).cast(_SCHEMA)
            to = _digests(rows)["high"] % np.uint64(buckets)
            order = np.argsort(to, kind="stable")
            borders = np.searchsorted(to[order], np.arange(buckets + 1, dtype=np.uint64))
            dealt = rows.take(pa.array(order))
            for bucket in range(buckets):
                piece = dealt.slice(int(borders[bucket]), int(borders[bucket + 1] - borders[bucket]))
                if piece.num_rows:
                    writers[bucket].write_table(piece)
    return [_Bucket([], file) for file in files]


def _join_bucket(one: pa.Table, other: pa.Table) -> JoinedBucket:
    ours, theirs = _digests(one), _digests(other)
    order = np.argsort(theirs["high"], kind="stable")
    at = find(theirs[order], ours)
    shared = at >= 0
    places = order[at[shared]]
    unmatched = np.ones(len(theirs), dtype=np.bool_)
    unmatched[places] = False
    return JoinedBucket(
        (one.filter(pa.array(shared)), other.take(pa.array(places))),
        (one.filter(pa.array(~shared)), other.filter(pa.array(unmatched))),
        ours[shared],
    )


def _digests(rows: pa.Table) -> Digests:
    return text_digests(rows["image_id"], key=1)


_SCHEMA = pa.schema(
    [(name, {"score": pa.float32(), "size_bytes": pa.int64()}.get(name, pa.string())) for name in COLUMNS]
)
_EMPTY = _SCHEMA.empty_table()


def failed(rows: pa.Table) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which of the rows are errors, (N,)."""
    found: np.ndarray[tuple[int], np.dtype[np.bool_]] = pc.not_equal(rows["status"], "ok").to_numpy()
    return found
