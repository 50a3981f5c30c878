"""An archive of any size without a pixel: made listings, made rows of the table, and workers that do nothing.

Names, sizes and versions are as long and as different as those of an object store.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout
from captioning.run.shard_io import ShardIO
from captioning.run.sources import Entry, Source
from captioning.run.table import SCHEMA
from captioning.storage import Location

SHARD_SIZE = 512
_PLACE = "/nowhere/photos-of-a-benchmark"
_TEXT = "a two man woman dog child in red blue shirt runs stands sits on the grass street water near with"


class MadeSource(Source):
    """A listing of `images` images, ten thousand a folder; nothing is where it says."""

    kind = "made"
    images = 0

    @classmethod
    def of(cls, images: int) -> "MadeSource":
        source = cls(_PLACE, Location.parse(_PLACE), "")
        source.images = images
        return source

    def _entries(self) -> Iterator[Entry]:
        digests = b""
        for number in range(self.images):
            at = number % 1024 * 16
            if not at:
                digests = hashlib.shake_128(number.to_bytes(8, "little")).digest(16 * 1024)
            name = f"{number // 10_000:05d}/IMG_{number:09d}.jpg"
            yield Entry(name, f"{_PLACE}/{name}", 20_000 + number * 7919 % 400_000, digests[at : at + 16].hex())


@cache
def _captions() -> pa.Array:
    """So many that few come twice in a part."""
    words = np.random.default_rng(0).choice(_TEXT.split(), (200_000, 10))
    return pa.array([" ".join(caption) for caption in words])


def write_made_part(layout: RunLayout, index: Index, part: PartRange) -> None:
    """Write a part of the table as `fold` does: ten words a caption, three alternatives, an error in a hundred rows."""
    ids = index.range_ids(part).combine_chunks()
    rng = np.random.default_rng(part.first)
    count = len(ids)
    pool = _captions()
    failed = rng.random(count) < 0.01
    chosen = pa.array(rng.integers(0, len(pool), count), mask=failed)
    scores = pa.array((-rng.random(count)).astype(np.float32), mask=failed)
    lengths = np.where(failed, 0, 3)
    others = int(lengths.sum())
    alternatives = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
        pa.StructArray.from_arrays(
            [pool.take(pa.array(rng.integers(0, len(pool), others))), pa.array(-rng.random(others), pa.float32())],
            ["caption", "score"],
        ),
    )
    columns: dict[str, Any] = {
        "image_id": ids,
        "uri": ids,
        "caption": pool.take(chosen),
        "score": scores,
        "num_tokens": pa.array(np.full(count, 11, np.int16), mask=failed),
        "alternatives": alternatives,
        "status": pa.array(np.where(failed, "error", "ok")),
        "error_class": pa.array(np.full(count, "missing"), mask=~failed),
        "error_message": pa.array(np.full(count, "There is no such file."), mask=~failed),
        "width": pa.array(rng.integers(200, 5000, count), pa.int32()),
        "height": pa.array(rng.integers(200, 5000, count), pa.int32()),
        "size_bytes": pa.array(rng.integers(20_000, 400_000, count)),
        "model": pa.array(np.full(count, "made@00000000")),
    }
    table = pa.Table.from_pydict(columns, schema=SCHEMA)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", row_group_size=65536, write_page_checksum=True)
    layout.part(part).create_bytes(buffer.getvalue().to_pybytes(), temp=layout.tmp_dir)


class IdleDecode:
    """In the place of `DecodeShard`: a pixel an image, of nothing."""

    def __init__(self, shard_io: ShardIO, *_: Any, **__: Any) -> None:
        self.shard_io = shard_io

    def __call__(self, batch: pa.Table) -> pa.Table:
        from jobs.workers.decode_shard import DECODED

        [number] = batch.column("shard").to_pylist()
        fixed = {"shard": number, "pixels": b"\0\0\0", "width": 1, "height": 1, "fetch_seconds": 0.0}
        rows = [
            {"image_id": entry.image_id, "uri": entry.uri, "size_bytes": entry.size_bytes, "decode_seconds": 0.0}
            | fixed
            for entry in self.shard_io.entries(number)
        ]
        return pa.Table.from_pylist(rows, schema=DECODED)


class _Caption(NamedTuple):
    text: str = "nothing to see"
    score: float = -1.0
    num_tokens: int = 4
    alternatives: tuple[tuple[str, float], ...] = (("nothing to see", -1.0),)


class IdleCaptioner:
    """A captioner that has one answer."""

    def __init__(self, name: str) -> None:
        self.name = name

    def caption_pixels(self, pixels: Any, *, batch_size: int) -> Sequence[_Caption]:
        return [_Caption()] * len(pixels)


def load_idle(*, name: str, **_: Any) -> Callable[[], IdleCaptioner]:
    """In the place of `LoadCaptioner`."""
    return _LoadIdle(name)


class _LoadIdle:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> IdleCaptioner:
        return IdleCaptioner(self.name)
