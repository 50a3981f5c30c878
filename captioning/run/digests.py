"""Sets of text by 128-bit digest: 16 bytes an item, for archives whose ids do not fit in memory.

Two texts are taken for the same when their digests are equal, which by chance they never are
(odds of 1e-22 in a set of a hundred million). Knows nothing of what the texts are.
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
    """The position of each `wanted` digest (N,) in `ordered`, sorted by `high`; -1 where it is not in it."""
    found = np.full(len(wanted), -1, dtype=np.int64)
    # In their order: a search then finds in the cache what the one before it has read.
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

    Single additions gather in a small Python set first, so that both ways of use are quick.
    """

    _FRESH = 65536

    def __init__(self) -> None:
        self._runs: list[Digests] = []
        self._fresh: dict[bytes, None] = {}

    def add(self, batch: Digests) -> Flags:
        """Add the digests (N,); says of each whether it was new: not in the set, nor earlier in the batch."""
        new = np.ones(len(batch), dtype=np.bool_)
        for run in self._runs:
            new &= find(run, batch) < 0
        raw = batch.tobytes()
        for at in np.flatnonzero(new):
            item = raw[16 * at : 16 * at + 16]
            if item in self._fresh:
                new[at] = False
            else:
                self._fresh[item] = None
        if len(self._fresh) >= self._FRESH:
            self._settle()
        return new

    def _settle(self) -> None:
        run = np.frombuffer(b"".join(self._fresh), dtype=DIGEST)
        self._fresh = {}
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate([self._runs.pop(), run])
        self._runs.append(run[np.argsort(run["high"], kind="stable")])
