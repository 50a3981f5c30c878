"""Where progress is shown: a live view in a terminal, plain lines, JSON lines, or nowhere.

Knows how often and in what form something is shown, and nothing of what it is: that tells a line for
people, a few details for the live view, and facts for programs.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from captioning.redaction import redacted, without_secrets
from jobs.gpus import GpuWatch
from jobs.shared_options import ProgressMode, progress_mode

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

#: Seconds between two plain lines, and between two JSON lines of progress.
PLAIN_EVERY = 10.0
JSON_EVERY = 1.0
#: How often a second the live view is drawn.
_FRAMES = 2


class Subject(Protocol):
    """What makes progress."""

    def line(self) -> str:
        """How far it is, in one line."""
        ...

    def share(self) -> float | None:
        """How much is done, from 0 to 1; None when that cannot be said."""
        ...

    def details(self) -> Sequence[tuple[str, str]]:
        """More for the live view: names, each with a text."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """The same as plain values."""
        ...


class Display:
    """Shows a subject while in its `with` block; `say` prints a line beside it, also before and after."""

    def __init__(
        self, subject: Subject, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._subject = subject
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._mode = resolve_mode(self._stream)
        self._every = JSON_EVERY if self._mode is ProgressMode.json else PLAIN_EVERY
        self._shown = clock()
        self._live: Live | None = None
        self._gpus = GpuWatch()

    def __enter__(self) -> "Display":
        if self._mode is ProgressMode.live:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, force_terminal=True)
            self._live = Live(get_renderable=self._view, console=console, refresh_per_second=_FRAMES, transient=True)
            self._gpus.start()
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._gpus.stop()

    def say(self, text: str) -> None:
        """Print a line, above the live view where there is one."""
        if self._live is not None:
            self._live.console.print(without_secrets(text), highlight=False, markup=False)
        else:
            say(text, self._stream)

    def tell(self, kind: str, facts: Mapping[str, Any], text: str) -> None:
        """Tell what happened, whatever time it is: `facts` to programs, `text` to people."""
        if self._mode is ProgressMode.json:
            _print_json(self._stream, kind, facts)
        elif self._mode is not ProgressMode.none:
            self.say(text)

    def changed(self, *, last: bool = False) -> None:
        """Show how far it is if that is due; what is `last` always is. Costs next to nothing when it is not."""
        if self._live is not None or self._mode is ProgressMode.none:
            return
        now = self._clock()
        if now - self._shown < self._every and not last:
            return
        self._shown = now
        if self._mode is ProgressMode.json:
            _print_json(self._stream, "progress", self._subject.facts())
        else:
            print(self._subject.line(), file=self._stream, flush=True)

    def _view(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        rows = Table.grid(padding=(0, 2))
        for name, text in (*self._subject.details(), *self._gpus.lines()):
            rows.add_row(Text(name, style="dim"), Text(text))
        share = self._subject.share()
        parts: list[RenderableType] = [Text(self._subject.line())]
        if share is not None:
            parts.append(ProgressBar(total=1.0, completed=share, width=60))
        return Group(*parts, rows) if rows.row_count else Group(*parts)


def resolve_mode(stream: TextIO) -> ProgressMode:
    """How progress is shown on `stream`: what was asked for, else what suits it."""
    mode = progress_mode()
    if mode is ProgressMode.auto:
        return ProgressMode.live if stream.isatty() else ProgressMode.plain
    return mode


def say(text: str, stream: TextIO | None = None) -> None:
    """Tell people one line on stderr, or on `stream`: a JSON line where those are asked for."""
    stream = stream if stream is not None else sys.stderr
    if progress_mode() is ProgressMode.json:
        _print_json(stream, "message", {"text": text})
    else:
        print(without_secrets(text), file=stream, flush=True)


def say_end(message: str, code: int) -> None:
    """Say on stderr why a command ends, with its exit code where JSON lines are asked for."""
    try:
        as_json = progress_mode() is ProgressMode.json
    except ValueError:  # that may be what the message is about
        as_json = False
    if as_json:
        _print_json(sys.stderr, "end", {"text": message, "exit_code": code})
    else:
        print(without_secrets(message), file=sys.stderr, flush=True)


def _print_json(stream: TextIO, event: str, facts: Mapping[str, Any]) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"event": event, "time": now, **redacted(facts)}), file=stream, flush=True)
