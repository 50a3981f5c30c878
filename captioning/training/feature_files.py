"""The kept features of one training shard: a file of numbers and, written after it, its index.

    NAME.stems    float16, little-endian, (samples, views, …) in row-major order: any stem by its place
    NAME.json     shape, views, and each sample's key, captions and checksums; without it NAME.stems does not count

Local files are mapped into memory, others read by ranges. Knows nothing of models or epochs.
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
_TYPE = np.dtype("<f2")
#: Gaps of so many bytes between two stems are read with them: cheaper than another request.
_GAP = 128 * 2**10
#: The longest range that is read at once.
_LONGEST = 32 * 2**20


@dataclass(frozen=True)
class CachedSample:
    """One image's captions, and `stem`, read-only float16: what the frozen part of an encoder makes of a view of it."""

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
        return math.prod(self.shape) * _TYPE.itemsize

    @property
    def all_bytes(self) -> int:
        return len(self.keys) * self.views * self.stem_bytes


class FeatureFile:
    """The kept features of shard `shard`, in `folder`. Errors are `InputError`s that say which file to delete."""

    def __init__(self, folder: Location, shard: ShardInfo) -> None:
        name = shard.name.removesuffix(".tar")
        self.stems = folder / f"{name}.stems"
        self.index = folder / f"{name}.json"
        self._samples = shard.samples

    def write(self, samples: Sequence[Sample], stems: bytes, shape: Sequence[int], views: int) -> None:
        """Keep `stems`, float16 (samples, views, *shape); each file is written in one step, the index last."""
        size = math.prod(shape) * _TYPE.itemsize
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
        # An index of other stems must not stand beside these for a moment.
        self.index.delete()
        self.stems.write_bytes(stems)
        self.index.write_text(json.dumps(index, ensure_ascii=False))

    def is_complete(self) -> bool:
        """Whether both files are there, belong together and hold the whole shard."""
        try:
            size = self._index.all_bytes
        except InputError:
            return False
        info = self.stems.info()
        return info is not None and info.size == size

    @property
    def views(self) -> int:
        """Views of each image."""
        return self._index.views

    @property
    def stem_bytes(self) -> int:
        """Bytes of one stem."""
        return self._index.stem_bytes

    def key(self, position: int) -> str:
        """The key of the sample at `position`."""
        return self._index.keys[position]

    def read(self, places: Sequence[tuple[int, int]]) -> list[CachedSample]:
        """The samples at the (position, view) `places`, in that order."""
        if self.stems.is_local:
            found = {place: self._map[place] for place in places}
        else:
            found = dict(self._read_ranges(sorted(set(places))))
        return [self._sample(position, view, found[position, view]) for position, view in places]

    def _sample(self, position: int, view: int, stem: NDArray[np.float16]) -> CachedSample:
        index = self._index
        if zlib.crc32(stem.data) != index.checksums[position][view]:
            raise self._damaged(self.stems, f"the features of {index.keys[position]!r} are not those that were written")
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
            if values["format_version"] != FORMAT_VERSION or counts != {self._samples}:
                raise ValueError(f"it tells of {len(index.keys)} samples, the training shard has {self._samples}")
        except StorageError as error:
            raise self._missing(self.index, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(self.index, f"{error!r}") from error
        return index

    @cached_property
    def _map(self) -> NDArray[np.float16]:
        index = self._index
        info = self.stems.info()
        if info is None:
            raise self._missing(self.stems, None)
        if info.size != index.all_bytes:
            raise self._damaged(self.stems, f"{info.size:,} bytes, not {index.all_bytes:,}")
        shape = (len(index.keys), index.views, *index.shape)
        # As a plain array: each slice of a memmap would pay for its class.
        return np.asarray(np.memmap(self.stems.local_path, dtype=_TYPE, mode="r", shape=shape))

    def _read_ranges(self, places: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], NDArray[np.float16]]]:
        """The stems at rising places, neighbours together."""
        size = self._index.stem_bytes
        starts = [(position * self._index.views + view) * size for position, view in places]
        first = 0
        for at in range(1, len(starts) + 1):
            more = at < len(starts) and starts[at] - starts[at - 1] - size <= _GAP
            if more and starts[at] + size - starts[first] <= _LONGEST:
                continue
            data = self._range(starts[first], starts[at - 1] + size - starts[first])
            for place, start in zip(places[first:at], starts[first:at], strict=True):
                stem = np.frombuffer(data, _TYPE, size // _TYPE.itemsize, start - starts[first])
                yield place, stem.reshape(self._index.shape)
            first = at

    def _range(self, offset: int, length: int) -> bytes:
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
            f"The feature cache has lost its file {path}. Give the same command again: the features are made anew."
        )

    def _damaged(self, path: Location, reason: str) -> InputError:
        return InputError(
            f"{path}, a file of the feature cache, is damaged ({reason}). Delete it and give the same command again: "
            "the features are made anew."
        )
