"""The Ray Data program: pending shards in, staged parts written, one small row a shard out.

    shard numbers ─▶ decode (CPU tasks) ─▶ caption and write (actor pool) ─▶ counts to the driver

Each block is one shard. No image, pixel or caption comes to the driver. Images that crash or hang the process that
handles them are dealt with below this level, in `decode_process` and `isolate`.
"""

import logging
import secrets
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from captioning.errors import UnfinishedError
from jobs.runners.pools import Node, Pools
from jobs.runners.work import ShardResult, Work
from jobs.shared_options import is_verbose
from jobs.user_errors import find_user_error
from jobs.workers.attempts import Attempts
from jobs.workers.caption_shard import CaptionShard
from jobs.workers.decode_shard import DecodeShard

if TYPE_CHECKING:
    from ray.data import DataContext

#: Shards per execution of the pipeline: Ray Data's state of each takes some 10 KB in the driver.
WINDOW = 4096
#: The least shards per captioner and execution. Each execution loads the captioners again, which must cost little
#: compared with their work in between, half a million images.
WINDOW_PER_ACTOR = 1024


def cluster_nodes() -> list[Node]:
    """The nodes of the Ray cluster that this process is connected to."""
    import ray

    return [
        Node(cpus=float(node["Resources"].get("CPU", 0)), gpus=float(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]


def caption_shards(work: Work, pools: Pools, shards: Sequence[int]) -> Generator[ShardResult, None, None]:
    """Caption the shards with these numbers, in windows; yields each as it is finished, in no order.

    Raises the `CaptioningError` of a worker unchanged, and `UnfinishedError` for workers that died.
    """
    from ray.data import DataContext
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError, RayTaskError

    attempts = Attempts(secrets.token_hex(8))
    size = max(WINDOW, WINDOW_PER_ACTOR * pools.actors)
    windows = _Windows([shards[start : start + size] for start in range(0, len(shards), size)])
    if not is_verbose():
        _quiet_console()
    with DataContext.current(_make_context(work.stall_s)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for window in windows:
                for count, result in enumerate(_caption(work, pools, window, attempts)):
                    if count == size // 2:
                        windows.prepare_next()
                    yield result
        except Exception as error:
            known = find_user_error(error)
            if known is not None:
                raise known from error
            if isinstance(error, ExecutionTimeoutError):
                raise UnfinishedError(
                    f"No progress for {work.stall_s:g} s (runtime.stall_s): {_explain_stall(pools)} "
                    "Finished shards are kept; run the same command again once this is fixed."
                ) from error
            if isinstance(error, RayTaskError) or not isinstance(error, RayError):
                raise  # a bug, and its traceback
            raise UnfinishedError(
                f"Worker processes died {work.max_retries + 1} times: {_first_lines(error)} "
                "Finished shards are kept; run the same command again to resume. If memory ran out, use a smaller "
                "runtime.actors or runtime.batch_size."
            ) from error


class _Windows:
    """Datasets of each window's shard numbers, created while the window before is in progress."""

    def __init__(self, windows: Sequence[Sequence[int]]) -> None:
        self._left = iter(windows)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="window")
        self._next: Future[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        """A dataset for each window, with a block for each of its shards."""
        try:
            while self.prepare_next() and self._next is not None:
                dataset, self._next = self._next.result(), None
                yield dataset
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def prepare_next(self) -> bool:
        """Start to create the next window's dataset, if not done already; whether there is one."""
        if self._next is None:
            shards = next(self._left, None)
            self._next = None if shards is None else self._thread.submit(self._make, shards)
        return self._next is not None

    @staticmethod
    def _make(shards: Sequence[int]) -> Any:
        import ray.data

        # Unlike `from_arrow` this starts no task for every block: 0.7 ms each instead of 3. This thread has the
        # process's default context, which must not be changed.
        rows = [{"shard": number} for number in shards]
        return ray.data.from_items(rows, override_num_blocks=len(rows))


def _make_context(stall_s: float) -> "DataContext":
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.target_max_block_size = None  # a block stays one shard, whatever its size
    context.enable_progress_bars = False
    context.print_on_execution_start = is_verbose()
    context.enable_auto_log_stats = False
    context.log_internal_stack_trace = False
    context.max_errored_blocks = 0
    context.raise_original_map_exception = True  # otherwise its class would be lost
    context.execution_no_progress_timeout_s = stall_s or -1
    return context


def _caption(work: Work, pools: Pools, dataset: Any, attempts: Attempts) -> Iterator[ShardResult]:
    """Caption the shards that the blocks of `dataset` name."""
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    dataset = dataset.map_batches(
        DecodeShard(work.shard_io, work.preprocess, work.storage, work.fetch, work.decode),
        batch_size=None,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=pools.decode_tasks),
        num_cpus=pools.cpus_per_decode,
        max_retries=work.max_retries,
    )
    # The public `map_batches` refuses whole blocks with GPUs, so that users choose a batch size. Here a block is a
    # shard, which the captioner splits into micro-batches itself.
    dataset = dataset.map_batches_internal(
        CaptionShard,
        fn_constructor_args=(work.load, work.shard_io, pools.batch_size, attempts, work.hang_s),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pools.actors, max_tasks_in_flight_per_actor=2),
        num_cpus=pools.cpus_per_actor,
        num_gpus=pools.gpus_per_actor or None,
        max_restarts=-1,  # `attempts` limits them per shard
        max_task_retries=-1,
    )
    for row in dataset.iter_rows():
        yield ShardResult.from_row(row)


def _quiet_console() -> None:
    """Send Ray Data's log to its file only: the driver shows progress and errors itself."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL + 1)


def _explain_stall(pools: Pools) -> str:
    """Why the run makes no progress, by the cluster's current state."""
    from jobs.runners.observe import node_loads
    from jobs.runners.stall import explain

    return explain(pools, node_loads())


def _first_lines(error: Exception) -> str:
    """The beginning of a message, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"
