"""Finds candidates for duplicates in a long stream of strings, in bounded memory.

Eight bytes per string are kept, beyond sixteen million strings in temporary files. Duplicates are never missed;
a few candidates may be false, so the caller compares the strings themselves.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from captioning.run.digests import Digests
from captioning.run.hashing import UInt64Array, text_digests

#: The most numbers kept in memory, eight bytes each.
_MAX_IN_MEMORY = 1 << 24
_BUCKETS = 256


class DuplicateFinder:
    """Collects strings with `add`; `candidates` then returns those that may have come more than once."""

    def __init__(self) -> None:
        self._pieces: list[UInt64Array] = []
        self._count = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, texts: "pa.Array | pa.ChunkedArray | Digests") -> None:
        """Add a column of strings (N,), or their digests if these are known already."""
        digests = texts if isinstance(texts, np.ndarray) else text_digests(texts)
        self._pieces.append(np.ascontiguousarray(digests["high"]))
        self._count += len(digests)
        if self._count >= _MAX_IN_MEMORY:
            self._spill()

    def candidates(self) -> UInt64Array:
        """The upper halves of the digests that came more than once, sorted. Ends the collection."""
        if self._folder is None:
            return _duplicates(self._take_pieces())
        self._spill()
        files = sorted(Path(self._folder.name).iterdir())
        found = [_duplicates(np.fromfile(file, dtype=np.uint64)) for file in files]
        self.close()
        return np.concatenate(found)

    def close(self) -> None:
        """Delete the temporary files, if there are any."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _take_pieces(self) -> UInt64Array:
        taken = np.concatenate([np.empty(0, np.uint64), *self._pieces])
        self._pieces, self._count = [], 0
        return taken

    def _spill(self) -> None:
        """Append the numbers in memory to the files, one for each range of numbers."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="captioning-ids-")
        held = self._take_pieces()
        held.sort()
        borders = np.searchsorted(held, np.arange(_BUCKETS, dtype=np.uint64) << np.uint64(56))
        for number, piece in enumerate(np.split(held, borders[1:])):
            with open(Path(self._folder.name) / f"{number:03d}", "ab") as file:
                file.write(piece.data)


def is_in(texts: "pa.Array | pa.ChunkedArray", candidates: UInt64Array) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each of the strings (N,) is one of the `candidates`."""
    high = text_digests(texts)["high"]
    at = np.minimum(np.searchsorted(candidates, high), max(0, len(candidates) - 1))
    return candidates[at] == high if len(candidates) else np.zeros(len(high), np.bool_)


def _duplicates(numbers: UInt64Array) -> UInt64Array:
    """The numbers that come more than once, sorted; sorts `numbers` in place."""
    numbers.sort()
    return np.unique(numbers[1:][numbers[1:] == numbers[:-1]])
