"""A runner without Ray: workers are processes of this machine, as many as it has cores.

For small jobs, which take less time than a Ray needs to start. The shards, the code that captions
them and the table are those of `pipeline`; so are the answers to workers that die.
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
from jobs.runners.work import Observer, ShardResult, Work, error_of
from jobs.workers.child_process import ChildDiedError, ChildHungError, ChildProcess

#: Images that make another worker worth its start.
_IMAGES_A_WORKER = 64
#: A worker's own watchdogs tell what hangs; this bounds a shard that nothing else does. Seconds.
_SHARD_SECONDS = 1e6
#: Workers that died one after another with no shard finished in between. `attempts` is stricter where it can tell.
_MOST_DEATHS = 30


class LocalRunner:
    """Workers on this machine, which end with the `with` block. The first one starts at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: set[ChildProcess] = set()
        self._spare: ChildProcess | None = None

    def __enter__(self) -> "LocalRunner":
        self._spare = self._make()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, whatever they are at."""
        with self._lock:
            workers, self._workers, self._spare = self._workers, set(), None
        for worker in workers:
            worker.kill()

    def nodes(self) -> list[Node]:
        """This machine. Its GPUs are left to Ray."""
        return [Node(cpus=len(usable_cores()))]

    def most_workers(self, shards: int, images: int) -> int:
        """A second worker costs the import of PyTorch once more."""
        return min(shards, -(-images // _IMAGES_A_WORKER))

    def require_shared(self, file: Path) -> None:
        """There is one machine."""

    def observe(
        self,
        run: str,  # noqa: ARG002
        pools: Pools,  # noqa: ARG002
        say: Callable[[str], None],  # noqa: ARG002
        note: Callable[..., None],  # noqa: ARG002
    ) -> AbstractContextManager[Observer | None]:
        """Nobody looks on: workers that hang are ended, and there is no dashboard."""
        return nullcontext()

    def caption_shards(self, work: Work, pools: Pools, shards: Sequence[int]) -> Generator[ShardResult, None, None]:
        """See `Runner`."""
        crew = _Crew(self, work, pools, shards)
        try:
            yield from crew.results()
        finally:
            crew.end()
            self.close()

    def call(self, function: Callable[..., Any], *arguments: Any, pools: Pools) -> Any:  # noqa: ARG002
        """See `Runner`."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            return executor.submit(function, *arguments).result()

    def take(self) -> ChildProcess:
        """A worker that has not been told its work."""
        with self._lock:
            spare, self._spare = self._spare, None
        return spare or self._make()

    def _make(self) -> ChildProcess:
        worker = ChildProcess("jobs.runners.shard_worker")
        with self._lock:
            self._workers.add(worker)
        return worker

    def forget(self, worker: ChildProcess) -> None:
        """It is no more."""
        with self._lock:
            self._workers.discard(worker)


class _Crew:
    """The workers of one execution, each with a thread here that gives it shards."""

    def __init__(self, runner: LocalRunner, work: Work, pools: Pools, shards: Sequence[int]) -> None:
        self._runner = runner
        self._start = [pickle.dumps((work, pools.batch_size, secrets.token_hex(8)))]
        self._todo = deque(shards)
        self._count = len(shards)
        self._found: queue.SimpleQueue[ShardResult | BaseException] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._deaths = 0
        self._threads = [threading.Thread(target=self._drive, daemon=True) for _ in range(pools.actors)]

    def results(self) -> Iterator[ShardResult]:
        """Every shard's result, as it is finished."""
        for thread in self._threads:
            thread.start()
        for _ in range(self._count):
            found = self._found.get()
            if isinstance(found, BaseException):
                raise found
            yield found

    def end(self) -> None:
        """Give out no more shards."""
        self._ended.set()
        self._todo.clear()

    def _drive(self) -> None:
        try:
            self._work_off()
        except BaseException as error:
            if not self._ended.is_set():
                self._found.put(error)

    def _work_off(self) -> None:
        worker: ChildProcess | None = None
        at = self._take()
        following = self._take()
        while at is not None:
            try:
                if worker is None:
                    worker = self._runner.take()
                    worker.begin(self._start)
                [answer] = worker.ask([json.dumps([at, following]).encode()], seconds=_SHARD_SECONDS)
            except (ChildDiedError, ChildHungError) as error:
                if worker is not None:
                    self._runner.forget(worker)
                    worker = None
                self._count_death(error)
                continue
            row: dict[str, Any] = json.loads(answer)
            error_found = error_of(row)
            if error_found is not None:
                raise error_found
            self._deaths = 0
            self._found.put(ShardResult.from_row(row))
            at, following = following, self._take()

    def _take(self) -> int | None:
        with suppress(IndexError):
            return self._todo.popleft()
        return None

    def _count_death(self, error: Exception) -> None:
        if self._ended.is_set():
            raise error
        self._deaths += 1
        if self._deaths >= _MOST_DEATHS:
            raise UnfinishedError(
                f"Worker processes were lost {self._deaths} times over: {error}. Finished shards are kept; give the "
                "same command again to go on. If memory ran out, a smaller runtime.actors or runtime.batch_size helps."
            )
