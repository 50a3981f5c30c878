"""A local worker process: `python -m jobs.runners.shard_worker`, started by `runners.local`.

Runs the same code as Ray Data's tasks and actors: fetches, decodes, captions and stages shards. While one shard is
captioned the next is decoded. If it dies, another worker starts its shard again.
"""

import json
import pickle
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from captioning.errors import CaptioningError
from jobs.lean_arrow import lean_arrow
from jobs.runners.work import Work, error_to_json
from jobs.workers.attempts import Attempts
from jobs.workers.caption_shard import CaptionShard
from jobs.workers.child_process import Requests
from jobs.workers.decode_shard import DecodeShard


def main() -> int:
    """Process shards until the parent closes the pipe."""
    requests = Requests()
    lean_arrow()
    # Importing PyTorch takes seconds, during which the parent is still listing the archive.
    threading.Thread(target=_import_ahead, daemon=True).start()
    start = requests.next()
    if start is None:
        return 0
    # Safe to unpickle: from the parent process, without content of the archive or the checkpoint.
    work, batch_size, token = pickle.loads(start[0])
    requests.answer()
    worker = _Worker(work, batch_size, Attempts(token))
    while (request := requests.next()) is not None:
        number, following = json.loads(request[0])
        requests.answer(json.dumps(worker.caption(number, following)).encode())
    return 0


class _Worker:
    """A captioner in a thread of its own, beside the main thread, which decodes."""

    def __init__(self, work: Work, batch_size: int, attempts: Attempts) -> None:
        self._decode = DecodeShard(work.shard_io, work.preprocess, work.storage, work.fetch, work.decode)
        # Child processes die with the thread that started them, so the main thread decodes (see `ChildProcess`).
        self._thread = ThreadPoolExecutor(1)
        self._captioner = self._thread.submit(CaptionShard, work.load, work.shard_io, batch_size, attempts, work.hang_s)
        self._ahead: tuple[int, pa.Table | Exception] | None = None

    def caption(self, number: int, following: int | None) -> dict[str, Any]:
        """The `SHARD_RESULT` row of a shard, or its error; meanwhile decodes the shard `following`."""
        if self._ahead is not None and self._ahead[0] == number:
            decoded = self._ahead[1]
        else:
            decoded = self._decoded(number)
        self._ahead = None
        if isinstance(decoded, Exception):
            return _failure(decoded)
        working = self._thread.submit(self._caption, decoded)
        if following is not None:
            self._ahead = following, self._decoded(following)
        try:
            return working.result()
        except Exception as error:
            return _failure(error)

    def _decoded(self, number: int) -> pa.Table | Exception:
        try:
            return self._decode(pa.table({"shard": pa.array([number], pa.int64())}))
        except Exception as error:
            return error

    def _caption(self, decoded: pa.Table) -> dict[str, Any]:
        [row] = self._captioner.result()(decoded).to_pylist()
        return dict(row)


def _failure(error: Exception) -> dict[str, Any]:
    """An error in place of a shard's row; a bug's traceback is printed here, for the parent gets its text only."""
    if not isinstance(error, CaptioningError):
        traceback.print_exception(error)
    return error_to_json(error)


def _import_ahead() -> None:
    import captioning.captioner  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
