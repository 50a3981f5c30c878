"""A child process for work that may crash or hang: requests and replies over a pipe, with timeouts.

    with ChildProcess("jobs.workers.decode_child", start=[b"…"]) as child:
        reply = child.request([b"…"], seconds=60)

Used for work that could crash or hang a process that the job depends on. There is one request at a time, so the
caller knows what the process was working on when it died. The pipe carries frames of several parts of bytes.

The child ends with its parent: at end of file on its input, and on Linux by a signal even when it hangs.
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
#: Seconds for a process to start, even on a very busy machine.
_START_SECONDS = 300.0
_PR_SET_PDEATHSIG = 1


class ChildDiedError(CaptioningError):
    """The process ended during a request; `killed_externally` if by a signal that other processes send (SIGKILL …)."""

    def __init__(self, code: int) -> None:
        name = signal.Signals(-code).name if code < 0 and -code in signal.valid_signals() else f"exit code {code}"
        super().__init__(f"the process ended with {name}")
        self.code = code
        self.killed_externally = code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


class ChildHungError(CaptioningError):
    """The process did not reply in time, and was killed."""


class ChildProcess:
    """A child `python -m MODULE`; `start` is its first frame, to which it replies when it is ready.

    Without `start` the process starts while the caller prepares the first frame, which `begin` sends. The
    constructor, `begin` and `request` raise `ChildDiedError` or `ChildHungError`, after which the process is gone.
    """

    def __init__(self, module: str, start: Sequence[bytes] | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        environment["MALLOC_ARENA_MAX"] = "1"
        # The kernel ends the child with the thread that started it; only the main thread lives long enough.
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
        #: Its reply when it was ready.
        self.ready: list[bytearray] = []
        if start is not None:
            self.begin(start)

    def begin(self, start: Sequence[bytes]) -> None:
        """Send the first frame, and wait until the process is ready."""
        self.ready = self.request(start, seconds=_START_SECONDS)

    def request(self, parts: Sequence[bytes], *, seconds: float) -> list[bytearray]:
        """Send a request, and return the parts of the reply, within `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            self._write(parts, deadline)
            [count] = _COUNT.unpack(self._read(_COUNT.size, deadline))
            lengths = [_LENGTH.unpack(self._read(_LENGTH.size, deadline))[0] for _ in range(count)]
            return [self._read(length, deadline) for length in lengths]
        except (BrokenPipeError, EOFError):
            raise ChildDiedError(self._end()) from None
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill the process."""
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
            raise ChildHungError("the process did not respond in time")


class Requests:
    """The child's end of the pipe. Create it once, first thing in the process."""

    def __init__(self) -> None:
        self._in = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        # Other code that prints or reads stdin must not interfere with replies and requests.
        os.dup2(2, 1)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.close(nowhere)
        # The parent handles Ctrl-C; until now the signal was blocked (`_without_interrupts`).
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _end_with_parent(int(sys.argv[1]))

    def next(self) -> list[bytes] | None:
        """The parts of the next request; None when the parent is gone."""
        head = self._in.read(_COUNT.size)
        if len(head) < _COUNT.size:
            return None
        [count] = _COUNT.unpack(head)
        sizes = [_LENGTH.unpack(self._in.read(_LENGTH.size))[0] for _ in range(count)]
        return [self._in.read(size) for size in sizes]

    def answer(self, *parts: bytes | memoryview) -> None:
        """Reply to the last request."""
        head = _COUNT.pack(len(parts)) + b"".join(_LENGTH.pack(len(part)) for part in parts)
        for data in (head, *parts):
            left = memoryview(data)
            while left:
                left = left[self._out.write(left) :]


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block SIGINT in this thread, and in processes started now, to which a terminal sends it as well."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _widen(pipe: int) -> None:
    """Enlarge a pipe's buffer, which saves context switches; not all systems allow it."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends; does nothing for 0, or on other systems than Linux."""
    if not parent or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # the parent ended in between
