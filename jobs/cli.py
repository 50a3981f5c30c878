"""What every verb of the command line shares: option types, and errors turned into exit codes.

Knows no verb, and imports neither Ray nor PyTorch: `--help` must stay quick.
"""

import functools
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from captioning.errors import CaptioningError, UsageError
from jobs.completion import complete_model, complete_setting
from jobs.display import say_end
from jobs.shared_options import wants_traceback

P = ParamSpec("P")
R = TypeVar("R")

OK, UNFINISHED, USAGE, INTERRUPTED = 0, 1, 2, 130

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings in YAML. See configs/ for examples."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting over those of --config; can be repeated. configs/README.md has all of them.",
        autocompletion=complete_setting,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="REF",
        help="A checkpoint's folder or URI, a Hugging Face repository id, or a bundled name. "
        "Without it: the bundled captioner.",
        autocompletion=complete_model,
    ),
]


def read_config(config: Path | None) -> tuple[str | None, str]:
    """The text of a `--config` file, if one is given, and how errors name where settings came from."""
    if config is None:
        return None, "the settings"
    try:
        return config.read_text(encoding="utf-8"), str(config)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {config} cannot be read: {error}. Give a YAML file of settings.") from error


def guard(verb: Callable[P, R]) -> Callable[P, R]:
    """Wrap a verb so that it ends with one message on stderr and the design's exit code.

    2 for a `UsageError`, 1 for any other `CaptioningError`, 130 for an interrupt (Ctrl-C or
    SIGTERM). Anything else is a bug and keeps its traceback.
    """

    @functools.wraps(verb)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        _interrupts.reset()
        try:
            with terminate_as_interrupt():
                return verb(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            how = str(interrupt) or "Give the same command again to go on."
            raise _end(f"Interrupted. {how}", INTERRUPTED) from None
        except Exception as error:
            known = find_user_error(error)
            if known is None:
                raise
            if wants_traceback():
                traceback.print_exc()
            raise _end(f"Error: {known}", USAGE if isinstance(known, UsageError) else UNFINISHED) from None

    return guarded


def find_user_error(error: BaseException) -> CaptioningError | None:
    """The `CaptioningError` in an exception's chain, also where Ray wrapped it on its way from a worker."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        at = pending.pop(0)
        if at is None or id(at) in seen:
            continue
        seen.add(id(at))
        cause = getattr(at, "cause", None)  # RayTaskError keeps the worker's exception here
        if isinstance(cause, BaseException):
            pending.insert(0, cause)
        elif isinstance(at, CaptioningError):
            return at
        pending += [at.__cause__, at.__context__ if not at.__suppress_context__ else None]
    return None


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


def _end(message: str, code: int) -> typer.Exit:
    say_end(message, code)
    return typer.Exit(code)
