"""Requests that come one by one, run in batches: what waits while a batch runs makes the next one.

Nothing waits for company: an idle captioner starts with whoever comes first, a busy one finds a full
batch when it is done. Items with different keys (decoding settings) never share a batch; the key
whose first item has waited longest goes next, so that none starves. Knows nothing of images.
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
    """An item's result, the seconds that it waited and that its batch ran, and how many shared it."""

    result: R
    queue_seconds: float
    run_seconds: float
    batch_size: int


@dataclass
class _Waiting(Generic[I, R]):
    item: I
    future: "asyncio.Future[Batched[R]]"
    since: float


class Batcher(Generic[K, I, R]):
    """Runs `run(key, items)`, which gives one result an item, in a thread of its own. Used from one event loop."""

    def __init__(self, run: Callable[[K, Sequence[I]], Sequence[R]], *, size: int) -> None:
        self._run = run
        self._size = size
        self._queues: dict[K, deque[_Waiting[I, R]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._task: asyncio.Task[None] | None = None

    async def submit(self, key: K, item: I) -> Batched[R]:
        """The item's result, once its batch has run. Raises what `run` raised for that batch."""
        loop = asyncio.get_running_loop()
        waiting: _Waiting[I, R] = _Waiting(item, loop.create_future(), time.perf_counter())
        self._queues.setdefault(key, deque()).append(waiting)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())
        return await waiting.future

    async def _work(self) -> None:
        while self._queues:
            key, batch = self._next()
            if not batch:
                continue
            begin = time.perf_counter()
            try:
                results = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._run, key, [waiting.item for waiting in batch]
                )
            except Exception as error:
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                continue
            taken = time.perf_counter() - begin
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(Batched(result, begin - waiting.since, taken, len(batch)))

    def _next(self) -> tuple[K, list[_Waiting[I, R]]]:
        """The next batch; items whose asker has gone are left out, so that it can be empty."""
        key = min(self._queues, key=lambda each: self._queues[each][0].since)
        queue = self._queues[key]
        batch: list[_Waiting[I, R]] = []
        while queue and len(batch) < self._size:
            waiting = queue.popleft()
            if not waiting.future.done():
                batch.append(waiting)
        if not queue:
            del self._queues[key]
        return key, batch
