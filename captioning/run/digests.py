"""Sets of strings by 128-bit digest: 16 bytes per item, for archives whose ids do not fit in memory.

Two strings with the same digest count as equal; a chance collision has odds of 1e-22 in a set of a hundred
million.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: A digest: two unsigned 64-bit numbers, compared in this order.
DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])

Digests = NDArray[np.void]
Flags = NDArray[np.bool_]


def digests(texts: Sequence[str]) -> Digests:
    """The digests of `texts`, (N,) of `DIGEST`."""
    joined = b"".join(hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest() for text in texts)
    return np.frombuffer(joined, dtype=DIGEST)


def find(ordered: Digests, wanted: Digests) -> NDArray[np.int64]:
    """The position of each `wanted` digest (N,) in `ordered`, which is sorted by `high`; -1 if it is not there."""
    found = np.full(len(wanted), -1, dtype=np.int64)
    # Searching in sorted order makes good use of the processor's cache.
    order = np.argsort(wanted["high"])
    high = wanted["high"][order]
    left, right = np.empty_like(found), np.empty_like(found)
    left[order] = np.searchsorted(ordered["high"], high, side="left")
    right[order] = np.searchsorted(ordered["high"], high, side="right")
    for step in range(int((right - left).max(initial=0))):
        at = left + step
        inside = np.flatnonzero(at < right)
        same = ordered["low"][at[inside]] == wanted["low"][inside]
        found[inside[same]] = at[inside[same]]
    return found


class DigestSet:
    """A set that grows in batches: sorted runs, merged when the newer one is as large as the older.

    Recent additions are in a small Python dict, so that adding one at a time is quick as well.
    """

    _MAX_RECENT = 65536

    def __init__(self) -> None:
        self._runs: list[Digests] = []
        self._recent: dict[bytes, None] = {}

    def add(self, batch: Digests) -> Flags:
        """Add the digests (N,); returns for each whether it was new: not in the set, nor earlier in the batch."""
        new = np.ones(len(batch), dtype=np.bool_)
        for run in self._runs:
            new &= find(run, batch) < 0
        raw = batch.tobytes()
        for at in np.flatnonzero(new):
            item = raw[16 * at : 16 * at + 16]
            if item in self._recent:
                new[at] = False
            else:
                self._recent[item] = None
        if len(self._recent) >= self._MAX_RECENT:
            self._flush()
        return new

    def _flush(self) -> None:
        run = np.frombuffer(b"".join(self._recent), dtype=DIGEST)
        self._recent = {}
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate([self._runs.pop(), run])
        self._runs.append(run[np.argsort(run["high"], kind="stable")])
