"""Dynamic batching: what arrives while a batch runs makes up the next one.

An idle captioner starts at once with the first item, without waiting for more; a busy one finds a full
batch when it is done. Items with different keys (decoding settings) never share a batch; the key whose
first item has waited longest goes next, so that none starves.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
I = TypeVar("I")  # noqa: E741 - item
R = TypeVar("R")


@dataclass(frozen=True)
class Batched(Generic[R]):
    """An item's result, its seconds in the queue, its batch's running time and size."""

    result: R
    queue_seconds: float
    run_seconds: float
    batch_size: int


@dataclass
class _QueuedItem(Generic[I, R]):
    item: I
    future: "asyncio.Future[Batched[R]]"
    queued_at: float


class Batcher(Generic[K, I, R]):
    """Calls `run(key, items)`, which returns one result per item, in a thread. Used from one event loop."""

    def __init__(self, run: Callable[[K, Sequence[I]], Sequence[R]], *, size: int) -> None:
        self._run = run
        self._max_size = size
        self._queues: dict[K, deque[_QueuedItem[I, R]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._task: asyncio.Task[None] | None = None

    async def submit(self, key: K, item: I) -> Batched[R]:
        """Queue an item and wait for its result. Raises what `run` raised for its batch."""
        loop = asyncio.get_running_loop()
        queued: _QueuedItem[I, R] = _QueuedItem(item, loop.create_future(), time.perf_counter())
        self._queues.setdefault(key, deque()).append(queued)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run_batches())
        return await queued.future

    async def _run_batches(self) -> None:
        while self._queues:
            key, batch = self._next_batch()
            if not batch:
                continue
            begin = time.perf_counter()
            try:
                results = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._run, key, [queued.item for queued in batch]
                )
            except Exception as error:
                for queued in batch:
                    if not queued.future.done():
                        queued.future.set_exception(error)
                continue
            taken = time.perf_counter() - begin
            for queued, result in zip(batch, results, strict=True):
                if not queued.future.done():
                    queued.future.set_result(Batched(result, begin - queued.queued_at, taken, len(batch)))

    def _next_batch(self) -> tuple[K, list[_QueuedItem[I, R]]]:
        """The next batch, without cancelled items, so it may be empty."""
        key = min(self._queues, key=lambda each: self._queues[each][0].queued_at)
        queue = self._queues[key]
        batch: list[_QueuedItem[I, R]] = []
        while queue and len(batch) < self._max_size:
            queued = queue.popleft()
            if not queued.future.done():
                batch.append(queued)
        if not queue:
            del self._queues[key]
        return key, batch
