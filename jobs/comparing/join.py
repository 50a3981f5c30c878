"""The rows of two caption tables brought together by `image_id`, in bounded memory and any order of rows.

Both tables are dealt into buckets by a hash of the id, in temporary files where there is more than
one, and a bucket at a time is joined: in memory are the rows of one bucket of each. Knows the
columns it takes; nothing of what is compared.
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

#: What is compared of a row.
COLUMNS = ("image_id", "uri", "caption", "score", "status", "error_class", "error_message", "size_bytes")

#: Rows of a bucket, on average, and the most buckets: files that are open at once are twice as many.
BUCKET_ROWS, MOST_BUCKETS = 250_000, 256


@dataclass(frozen=True)
class Joined:
    """A bucket: rows of the two tables that have the same ids, line by line, and those whose id one alone has."""

    both: tuple[pa.Table, pa.Table]
    alone: tuple[pa.Table, pa.Table]
    digests: Digests
    """Of the ids in `both`, the same in every process: what to draw by."""


def join(
    one: Iterable[pa.Table], other: Iterable[pa.Table], rows: int, bucket_rows: int = BUCKET_ROWS
) -> Iterator[Joined]:
    """Join two streams of tables that have `COLUMNS`; the longer one has about `rows` rows.

    Within a bucket rows come in the order of the first table.
    """
    buckets = max(1, min(MOST_BUCKETS, -(-rows // bucket_rows)))
    with tempfile.TemporaryDirectory(prefix="captioning-compare-") as folder:
        sides = [_deal(tables, buckets, Path(folder), name) for tables, name in ((one, "one"), (other, "other"))]
        for bucket in range(buckets):
            yield _joined(*(side[bucket].take() for side in sides))


class _Bucket:
    """Rows held until they are asked for: in memory, or in a file."""

    def __init__(self, held: list[pa.Table], file: Path | None) -> None:
        self._held, self._file = held, file

    def take(self) -> pa.Table:
        """The rows; what was held of them is let go."""
        if self._file is None:
            held, self._held = self._held, []
            return pa.concat_tables([_EMPTY, *held])
        with pa.OSFile(str(self._file)) as source:
            table = ipc.open_file(source).read_all()
        self._file.unlink()
        return table


def _deal(tables: Iterable[pa.Table], buckets: int, folder: Path, name: str) -> list[_Bucket]:
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


def _joined(one: pa.Table, other: pa.Table) -> Joined:
    ours, theirs = _digests(one), _digests(other)
    order = np.argsort(theirs["high"], kind="stable")
    at = find(theirs[order], ours)
    shared = at >= 0
    places = order[at[shared]]
    unmatched = np.ones(len(theirs), dtype=np.bool_)
    unmatched[places] = False
    return Joined(
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
