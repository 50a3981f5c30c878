"""A helper process that may die: asked over a pipe, watched, and told apart from its requests' faults.

    with ChildProcess("jobs.workers.decode_child", start=b"…") as child:
        reply = child.ask([b"…"], seconds=60)

Used for what can end or hang a process that the job cannot do without. One request is under way
at a time, so whoever asked knows what the process was at when it ended. The pipe carries frames
of parts; what is in them is for the two ends to say.

The process ends with its parent: by end of file on its input, and on Linux by a signal even where
it hangs. Knows nothing of images, captioners or Ray.
"""

import contextlib
import ctypes
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO

from captioning.errors import CaptioningError

_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")
_PIPE_BYTES = 1 << 20
#: Seconds for a process to come up on a machine that is very busy.
_START_SECONDS = 300.0
_PR_SET_PDEATHSIG = 1


class ChildDiedError(CaptioningError):
    """The process ended while it was asked. `outside` says that it was killed by SIGKILL, as others do."""

    def __init__(self, code: int) -> None:
        name = signal.Signals(-code).name if code < 0 and -code in signal.valid_signals() else f"exit code {code}"
        super().__init__(f"its process ended with {name}")
        self.code = code
        self.outside = code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


class ChildHungError(CaptioningError):
    """The process gave no answer in time, and was killed."""


class ChildProcess:
    """`python -m MODULE` as a helper: `start` is the first frame that it gets, and answers when it is ready.

    Without `start` it is let run while the first frame is made, and is given it by `begin`. Raises
    `ChildDiedError` or `ChildHungError` from the constructor, `begin` and `ask`; after either the
    process is gone.
    """

    def __init__(self, module: str, start: Sequence[bytes] | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        environment["MALLOC_ARENA_MAX"] = "1"
        # The kernel ends the child with the thread that made it: only the main one lives long enough.
        main = threading.current_thread() is threading.main_thread()
        with _without_interrupts():
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(os.getpid() if main else 0)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                bufsize=0,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        for pipe in (self._in, self._out):
            _widen(pipe.fileno())
            os.set_blocking(pipe.fileno(), False)
        self.pid = self._process.pid
        #: What it answered when it was ready.
        self.ready: list[bytearray] = []
        if start is not None:
            self.begin(start)

    def begin(self, start: Sequence[bytes]) -> None:
        """Give it the first frame, and wait until it is ready."""
        self.ready = self.ask(start, seconds=_START_SECONDS)

    def ask(self, request: Sequence[bytes], *, seconds: float) -> list[bytearray]:
        """The answer's parts, within `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            self._write(request, deadline)
            [count] = _COUNT.unpack(self._read(_COUNT.size, deadline))
            lengths = [_LENGTH.unpack(self._read(_LENGTH.size, deadline))[0] for _ in range(count)]
            return [self._read(length, deadline) for length in lengths]
        except (BrokenPipeError, EOFError):
            raise ChildDiedError(self._end()) from None
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._end()

    def __enter__(self) -> "ChildProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def _end(self) -> int:
        code = self._process.wait()
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):
                pipe.close()
        return code

    def _write(self, parts: Sequence[bytes], deadline: float) -> None:
        head = _COUNT.pack(len(parts)) + b"".join(_LENGTH.pack(len(part)) for part in parts)
        for data in (head, *parts):
            left = memoryview(data)
            while left:
                try:
                    left = left[os.write(self._in.fileno(), left) :]
                except BlockingIOError:
                    self._wait([], [self._in], deadline)

    def _read(self, length: int, deadline: float) -> bytearray:
        data = bytearray(length)
        left = memoryview(data)
        while left:
            try:
                count = os.readv(self._out.fileno(), [left])
            except BlockingIOError:
                self._wait([self._out], [], deadline)
                continue
            if not count:
                raise EOFError
            left = left[count:]
        return data

    def _wait(self, readers: Sequence[IO[bytes]], writers: Sequence[IO[bytes]], deadline: float) -> None:
        poll = select.poll()
        for pipe in readers:
            poll.register(pipe, select.POLLIN)
        for pipe in writers:
            poll.register(pipe, select.POLLOUT)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ChildHungError("its process gave no answer in time")


class Requests:
    """The child's end: frames in, frames out. Made once, first thing in the process."""

    def __init__(self) -> None:
        self._in = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        # Whatever prints must not print into the answers, nor read the requests.
        os.dup2(2, 1)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.close(nowhere)
        # Ctrl-C is the parent's to answer. Until now it was held back.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _end_with_parent(int(sys.argv[1]))

    def next(self) -> list[bytes] | None:
        """The next request's parts; None when there is no parent any more."""
        head = self._in.read(_COUNT.size)
        if len(head) < _COUNT.size:
            return None
        [count] = _COUNT.unpack(head)
        sizes = [_LENGTH.unpack(self._in.read(_LENGTH.size))[0] for _ in range(count)]
        return [self._in.read(size) for size in sizes]

    def answer(self, *parts: bytes | memoryview) -> None:
        """Answer the last request."""
        head = _COUNT.pack(len(parts)) + b"".join(_LENGTH.pack(len(part)) for part in parts)
        for data in (head, *parts):
            left = memoryview(data)
            while left:
                left = left[self._out.write(left) :]


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C is held back from this thread and from processes made now, which a terminal sends it to as well."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _widen(pipe: int) -> None:
    """A larger pipe costs fewer turns; a system that grants none works all the same."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _end_with_parent(parent: int) -> None:
    """Have the kernel end this process when `parent` ends; nothing where 0 is given, or not on Linux."""
    if not parent or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it ended in between
