"""Ctrl-C and SIGTERM: the first ends the work cleanly, a second one at once."""

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

    #: A wrapper may forward a signal that the terminal also sent to this process: signals this close count as one.
    _SAME = 0.5

    def __init__(self) -> None:
        self._first: float | None = None

    def reset(self) -> None:
        """Forget the signals of a previous command."""
        self._first = None

    def __call__(self, number: int, frame: object) -> None:  # noqa: ARG002 - a signal handler's arguments
        now = time.monotonic()
        if self._first is None:
            self._first = now
            raise KeyboardInterrupt
        if now - self._first > self._SAME:
            os.write(2, b"Stopped immediately; finished work is kept. Run the same command again to continue.\n")
            os._exit(INTERRUPTED)


_interrupts = _Interrupts()


def reset_interrupts() -> None:
    """Start a new command: its first signal ends it cleanly again."""
    _interrupts.reset()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Have SIGTERM end the body as Ctrl-C does: finished shards kept, exit code 130; a second signal ends it at once.

    Only the main thread can set signal handlers; elsewhere this does nothing. A process that was started
    to ignore Ctrl-C continues to ignore it.
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
