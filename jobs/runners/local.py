"""A runner without Ray: worker processes on this machine, up to one per core.

For small jobs, which take less time than Ray needs to start. Shards, captioning code and table are the same as in
`pipeline`, and so is the handling of workers that die.
"""

import json
import pickle
import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

from captioning.errors import UnfinishedError
from jobs.cores import usable_cores
from jobs.runners.pools import Node, Pools
from jobs.runners.work import Observer, ShardResult, Work, error_from_json
from jobs.workers.child_process import ChildDiedError, ChildHungError, ChildProcess

#: The images for which starting another worker is worthwhile.
_IMAGES_PER_WORKER = 64
#: The time limit of a shard in seconds: a last resort, for workers have watchdogs of their own.
_SHARD_SECONDS = 1e6
#: The most consecutive deaths of workers without a finished shard. (`attempts` has stricter limits per shard.)
_MAX_DEATHS = 30


class LocalRunner:
    """Workers on this machine, ended by the context manager. The first one is started at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: set[ChildProcess] = set()
        self._spare: ChildProcess | None = None

    def __enter__(self) -> "LocalRunner":
        self._spare = self._start_worker()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers."""
        with self._lock:
            workers, self._workers, self._spare = self._workers, set(), None
        for worker in workers:
            worker.kill()

    def nodes(self) -> list[Node]:
        """This machine, without its GPUs, which only the Ray runner uses."""
        return [Node(cpus=len(usable_cores()))]

    def max_workers(self, shards: int, images: int) -> int:
        """A worker per 64 images: each one imports PyTorch."""
        return min(shards, -(-images // _IMAGES_PER_WORKER))

    def require_shared(self, file: Path) -> None:
        """Does nothing: there is only one machine."""

    def observe(
        self,
        run: str,  # noqa: ARG002
        pools: Pools,  # noqa: ARG002
        notify: Callable[[str], None],  # noqa: ARG002
        log_event: Callable[..., None],  # noqa: ARG002
    ) -> AbstractContextManager[Observer | None]:
        """No observer: hanging workers end themselves, and there is no dashboard."""
        return nullcontext()

    def caption_shards(self, work: Work, pools: Pools, shards: Sequence[int]) -> Generator[ShardResult, None, None]:
        """See `Runner`."""
        workers = _WorkerPool(self, work, pools, shards)
        try:
            yield from workers.results()
        finally:
            workers.close()
            self.close()

    def call(self, function: Callable[..., Any], *arguments: Any, pools: Pools) -> Any:  # noqa: ARG002
        """See `Runner`."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            return executor.submit(function, *arguments).result()

    def acquire(self) -> ChildProcess:
        """A worker that has not received its work yet."""
        with self._lock:
            spare, self._spare = self._spare, None
        return spare or self._start_worker()

    def _start_worker(self) -> ChildProcess:
        worker = ChildProcess("jobs.runners.shard_worker")
        with self._lock:
            self._workers.add(worker)
        return worker

    def discard(self, worker: ChildProcess) -> None:
        """Remove a worker that has died."""
        with self._lock:
            self._workers.discard(worker)


class _WorkerPool:
    """The workers of one execution, each served by a thread of this process."""

    def __init__(self, runner: LocalRunner, work: Work, pools: Pools, shards: Sequence[int]) -> None:
        self._runner = runner
        self._start = [pickle.dumps((work, pools.batch_size, secrets.token_hex(8)))]
        self._pending = deque(shards)
        self._count = len(shards)
        self._results: queue.SimpleQueue[ShardResult | BaseException] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._deaths = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(pools.actors)]

    def results(self) -> Iterator[ShardResult]:
        """Yield every shard's result as it is finished."""
        for thread in self._threads:
            thread.start()
        for _ in range(self._count):
            result = self._results.get()
            if isinstance(result, BaseException):
                raise result
            yield result

    def close(self) -> None:
        """Distribute no more shards."""
        self._closed.set()
        self._pending.clear()

    def _run(self) -> None:
        try:
            self._caption_shards()
        except BaseException as error:
            if not self._closed.is_set():
                self._results.put(error)

    def _caption_shards(self) -> None:
        worker: ChildProcess | None = None
        shard = self._next_shard()
        following = self._next_shard()
        while shard is not None:
            try:
                if worker is None:
                    worker = self._runner.acquire()
                    worker.begin(self._start)
                [answer] = worker.request([json.dumps([shard, following]).encode()], seconds=_SHARD_SECONDS)
            except (ChildDiedError, ChildHungError) as error:
                if worker is not None:
                    self._runner.discard(worker)
                    worker = None
                self._count_death(error)
                continue
            row: dict[str, Any] = json.loads(answer)
            failure = error_from_json(row)
            if failure is not None:
                raise failure
            self._deaths = 0
            self._results.put(ShardResult.from_row(row))
            shard, following = following, self._next_shard()

    def _next_shard(self) -> int | None:
        with suppress(IndexError):
            return self._pending.popleft()
        return None

    def _count_death(self, error: Exception) -> None:
        if self._closed.is_set():
            raise error
        self._deaths += 1
        if self._deaths >= _MAX_DEATHS:
            raise UnfinishedError(
                f"Worker processes died {self._deaths} times in a row: {error}. Finished shards are kept; run the same "
                "command again to resume. If memory ran out, use a smaller runtime.actors or runtime.batch_size."
            )
