"""Which texts of a long stream may have come twice, in memory that stays within bounds.

Eight bytes a text are kept, and beyond sixteen million texts they go to temporary files. Equal texts are
never missed; a few that only look equal may be among the suspects, so whoever asks looks at those again.
Knows nothing of what the texts are.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from captioning.run.digests import Digests
from captioning.run.hashing import Words, text_digests

#: Numbers held in memory, eight bytes each.
_HELD = 1 << 24
_BUCKETS = 256


class Repeats:
    """Collects texts with `add`; `suspects` then says which may have come more than once."""

    def __init__(self) -> None:
        self._pieces: list[Words] = []
        self._count = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, texts: "pa.Array | pa.ChunkedArray | Digests") -> None:
        """Take in a column of texts (N,), or their digests where they are known already."""
        digests = texts if isinstance(texts, np.ndarray) else text_digests(texts)
        self._pieces.append(np.ascontiguousarray(digests["high"]))
        self._count += len(digests)
        if self._count >= _HELD:
            self._spill()

    def suspects(self) -> Words:
        """The upper halves of the digests that came more than once, sorted. Ends the collecting."""
        if self._folder is None:
            return _twice(self._taken())
        self._spill()
        files = sorted(Path(self._folder.name).iterdir())
        found = [_twice(np.fromfile(file, dtype=np.uint64)) for file in files]
        self.close()
        return np.concatenate(found)

    def close(self) -> None:
        """Remove the temporary files, if there are any."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _taken(self) -> Words:
        taken = np.concatenate([np.empty(0, np.uint64), *self._pieces])
        self._pieces, self._count = [], 0
        return taken

    def _spill(self) -> None:
        """Add what is held to the files, one for each range of numbers."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="captioning-ids-")
        held = self._taken()
        held.sort()
        borders = np.searchsorted(held, np.arange(_BUCKETS, dtype=np.uint64) << np.uint64(56))
        for number, piece in enumerate(np.split(held, borders[1:])):
            with open(Path(self._folder.name) / f"{number:03d}", "ab") as file:
                file.write(piece.data)


def are_among(texts: "pa.Array | pa.ChunkedArray", suspects: Words) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each of the texts (N,) is one of the `suspects`."""
    high = text_digests(texts)["high"]
    at = np.minimum(np.searchsorted(suspects, high), max(0, len(suspects) - 1))
    return suspects[at] == high if len(suspects) else np.zeros(len(high), np.bool_)


def _twice(numbers: Words) -> Words:
    """The numbers that come more than once, sorted; sorts `numbers` in place."""
    numbers.sort()
    return np.unique(numbers[1:][numbers[1:] == numbers[:-1]])
