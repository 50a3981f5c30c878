"""Ctrl-C and SIGTERM: the first ends the work cleanly, a second one at once. Knows no verb."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: The exit code of a command that was interrupted.
INTERRUPTED = 130


class _Interrupts:
    """The first Ctrl-C or SIGTERM ends the work cleanly, a further one at once."""

    #: What wraps a command may pass on the signal that a terminal gave to both: seconds in which two are one.
    _SAME = 0.5

    def __init__(self) -> None:
        self._first: float | None = None

    def reset(self) -> None:
        """Forget signals of a command that has ended."""
        self._first = None

    def __call__(self, number: int, frame: object) -> None:  # noqa: ARG002 - a signal handler's arguments
        now = time.monotonic()
        if self._first is None:
            self._first = now
            raise KeyboardInterrupt
        if now - self._first > self._SAME:
            os.write(2, b"Stopped at once; what was finished is kept. Give the same command again to go on.\n")
            os._exit(INTERRUPTED)


_interrupts = _Interrupts()


def forget_interrupts() -> None:
    """A new command begins: its first signal ends it cleanly."""
    _interrupts.reset()


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the work the way Ctrl-C does: finished shards kept, exit code 130; a second one ends it at once.

    Only the main thread of a process can say so; elsewhere this changes nothing. A process that was
    started to ignore Ctrl-C goes on doing so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, _interrupts)
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupts)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
