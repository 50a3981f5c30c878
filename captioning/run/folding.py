"""Folding while a run goes on: a part is written as soon as the last of its shards is finished.

In a thread of its own, so that whoever takes the results waits for no storage. Knows nothing of how
shards are finished; what is left over when a run stops is folded by the next one.
"""

from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import pyarrow as pa

from captioning.run.index import Index
from captioning.run.layout import PartRange
from captioning.run.staging import FoldResult, fold_range


class Folding:
    """Told of each shard of `pending` as it is finished. A context manager, which ends when all is folded."""

    def __init__(self, index: Index, pending: Iterable[int]) -> None:
        self._index = index
        self._left = Counter(index.range_of(number) for number in pending)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fold")
        self._folds: deque[Future[FoldResult]] = deque()

    def __enter__(self) -> "Folding":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the folds; where the run was stopped, only for the one at work."""
        self._thread.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self._raise_failures(wait=True)

    def finished(self, shard: int) -> None:
        """This shard is staged. Raises the `StorageError` of an earlier fold."""
        part = self._index.range_of(shard)
        self._left[part] -= 1
        if not self._left[part]:
            self._folds.append(self._thread.submit(self._fold, part))
        self._raise_failures(wait=False)

    def _raise_failures(self, *, wait: bool) -> None:
        while self._folds and (wait or self._folds[0].done()):
            self._folds.popleft().result()

    def _fold(self, part: PartRange) -> FoldResult:
        result = fold_range(self._index.layout, self._index, part)
        # Allocators give it back when they please: a driver of 4,200 shards held 70 to 100 MB more, nearly always.
        pa.default_memory_pool().release_unused()
        return result
