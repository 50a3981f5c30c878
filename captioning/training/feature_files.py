"""The cached features of one training shard: a binary file and an index, which is written after it.

    NAME.stems    float16, little-endian, (samples, views, …) in row-major order
    NAME.json     shape, views, and each sample's key, captions and checksums; without it NAME.stems is ignored

Local files are memory-mapped, remote ones are read by byte ranges.
"""

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioning.data.shards import Sample, ShardInfo
from captioning.errors import InputError, StorageError
from captioning.storage import Location

FORMAT_VERSION = 1
_DTYPE = np.dtype("<f2")
#: Gaps of at most this size between two stems are read along, which is cheaper than another request.
_MAX_GAP_BYTES = 128 * 2**10
#: The largest range to read in one request.
_MAX_RANGE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class CachedSample:
    """An image's captions and `stem`, the read-only float16 output of an encoder's frozen part for one view of it."""

    key: str
    captions: tuple[str, ...]
    stem: NDArray[np.float16]


@dataclass(frozen=True)
class _Index:
    shape: tuple[int, ...]
    views: int
    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    checksums: tuple[tuple[int, ...], ...]

    @property
    def stem_bytes(self) -> int:
        return math.prod(self.shape) * _DTYPE.itemsize

    @property
    def total_bytes(self) -> int:
        return len(self.keys) * self.views * self.stem_bytes


class FeatureFile:
    """The cached features of `shard` in `folder`. Errors are `InputError`s that say which file to delete."""

    def __init__(self, folder: Location, shard: ShardInfo) -> None:
        name = shard.name.removesuffix(".tar")
        self.stems = folder / f"{name}.stems"
        self.index = folder / f"{name}.json"
        self._samples = shard.samples

    def write(self, samples: Sequence[Sample], stems: bytes, shape: Sequence[int], views: int) -> None:
        """Write `stems`, float16 (samples, views, *shape). Each file is written atomically, the index last."""
        size = math.prod(shape) * _DTYPE.itemsize
        assert len(stems) == len(samples) * views * size
        sums = [zlib.crc32(stems[at : at + size]) for at in range(0, len(stems), size)]
        index = {
            "format_version": FORMAT_VERSION,
            "shape": list(shape),
            "views": views,
            "keys": [sample.key for sample in samples],
            "captions": [sample.captions for sample in samples],
            "checksums": [sums[at : at + views] for at in range(0, len(sums), views)],
        }
        # An old index must never be seen beside new stems.
        self.index.delete()
        self.stems.write_bytes(stems)
        self.index.write_text(json.dumps(index, ensure_ascii=False))

    def is_complete(self) -> bool:
        """Whether both files exist, match each other and hold all samples of the shard."""
        try:
            size = self._index.total_bytes
        except InputError:
            return False
        info = self.stems.info()
        return info is not None and info.size == size

    @property
    def views(self) -> int:
        """The number of views of each image."""
        return self._index.views

    @property
    def stem_bytes(self) -> int:
        """The size of one stem in bytes."""
        return self._index.stem_bytes

    def key(self, position: int) -> str:
        """The key of the sample at `position`."""
        return self._index.keys[position]

    def read(self, entries: Sequence[tuple[int, int]]) -> list[CachedSample]:
        """The samples of the (position, view) `entries`, in that order."""
        if self.stems.is_local:
            stems = {entry: self._memmap[entry] for entry in entries}
        else:
            stems = dict(self._read_ranges(sorted(set(entries))))
        return [self._sample(position, view, stems[position, view]) for position, view in entries]

    def _sample(self, position: int, view: int, stem: NDArray[np.float16]) -> CachedSample:
        index = self._index
        if zlib.crc32(stem.data) != index.checksums[position][view]:
            raise self._damaged(self.stems, f"the features of {index.keys[position]!r} do not match their checksum")
        return CachedSample(index.keys[position], index.captions[position], stem)

    @cached_property
    def _index(self) -> _Index:
        try:
            values: dict[str, Any] = json.loads(self.index.read_text())
            index = _Index(
                tuple(values["shape"]),
                values["views"],
                tuple(values["keys"]),
                tuple(map(tuple, values["captions"])),
                tuple(map(tuple, values["checksums"])),
            )
            counts = {len(index.keys), len(index.captions), len(index.checksums)}
            if values["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format version {values['format_version']}, not {FORMAT_VERSION}")
            if counts != {self._samples}:
                raise ValueError(f"it lists {len(index.keys)} samples, but the training shard has {self._samples}")
        except StorageError as error:
            raise self._missing(self.index, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(self.index, f"{error!r}") from error
        return index

    @cached_property
    def _memmap(self) -> NDArray[np.float16]:
        index = self._index
        info = self.stems.info()
        if info is None:
            raise self._missing(self.stems, None)
        if info.size != index.total_bytes:
            raise self._damaged(self.stems, f"{info.size:,} bytes, not {index.total_bytes:,}")
        shape = (len(index.keys), index.views, *index.shape)
        # As a plain array: slicing a memmap is slower.
        return np.asarray(np.memmap(self.stems.local_path, dtype=_DTYPE, mode="r", shape=shape))

    def _read_ranges(self, entries: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], NDArray[np.float16]]]:
        """The stems of ascending entries; those close together are read in one request."""
        size = self._index.stem_bytes
        starts = [(position * self._index.views + view) * size for position, view in entries]
        first = 0
        for at in range(1, len(starts) + 1):
            is_close = at < len(starts) and starts[at] - starts[at - 1] - size <= _MAX_GAP_BYTES
            if is_close and starts[at] + size - starts[first] <= _MAX_RANGE_BYTES:
                continue
            data = self._read_range(starts[first], starts[at - 1] + size - starts[first])
            for entry, start in zip(entries[first:at], starts[first:at], strict=True):
                stem = np.frombuffer(data, _DTYPE, size // _DTYPE.itemsize, start - starts[first])
                yield entry, stem.reshape(self._index.shape)
            first = at

    def _read_range(self, offset: int, length: int) -> bytes:
        try:
            data = self.stems.read_range(offset, length)
        except StorageError as error:
            raise self._missing(self.stems, error) from error
        if len(data) != length:
            raise self._damaged(self.stems, f"it ends before byte {offset + length:,}")
        return data

    def _missing(self, path: Location, error: StorageError | None) -> InputError | StorageError:
        if error is not None and error.error_class != "missing":
            return error
        return InputError(
            f"The feature cache lacks its file {path}. Run the same command again: the features are computed again."
        )

    def _damaged(self, path: Location, reason: str) -> InputError:
        return InputError(
            f"{path}, a file of the feature cache, is damaged ({reason}). Delete it and run the same command again: "
            "the features are computed again."
        )
