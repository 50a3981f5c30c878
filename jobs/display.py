"""Shows progress: as a live view in a terminal, as plain lines, as JSON lines, or not at all.

Decides how often and in what form; the text and the numbers come from a `ProgressSource`.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from captioning.redaction import redacted, without_secrets
from jobs.gpus import GpuMonitor
from jobs.shared_options import ProgressMode, progress_mode

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

#: Seconds between two plain lines, and between two JSON lines of progress.
PLAIN_EVERY = 10.0
JSON_EVERY = 1.0
#: Refreshes of the live view per second.
_FRAMES = 2


class ProgressSource(Protocol):
    """Something whose progress can be shown."""

    def line(self) -> str:
        """The progress in one line, for people."""
        ...

    def fraction(self) -> float | None:
        """The fraction done, from 0 to 1; None when unknown."""
        ...

    def details(self) -> Sequence[tuple[str, str]]:
        """More rows for the live view: (name, text)."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """The progress as plain values, for programs."""
        ...


class Display:
    """Shows a source's progress within a `with` block; `print_line` also works before and after."""

    def __init__(
        self, source: ProgressSource, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._mode = resolve_mode(self._stream)
        self._every = JSON_EVERY if self._mode is ProgressMode.json else PLAIN_EVERY
        self._shown = clock()
        self._live: Live | None = None
        self._gpus = GpuMonitor()

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

    def print_line(self, text: str) -> None:
        """Print a line, above the live view where there is one."""
        if self._live is not None:
            self._live.console.print(without_secrets(text), highlight=False, markup=False)
        else:
            print_line(text, self._stream)

    def emit(self, kind: str, facts: Mapping[str, Any], text: str) -> None:
        """Show an event at once: `facts` as a JSON line, or `text` for people."""
        if self._mode is ProgressMode.json:
            _print_json(self._stream, kind, facts)
        elif self._mode is not ProgressMode.none:
            self.print_line(text)

    def refresh(self, *, last: bool = False) -> None:
        """Show the progress if an update is due, or if it is the `last`. Cheap otherwise."""
        if self._live is not None or self._mode is ProgressMode.none:
            return
        now = self._clock()
        if now - self._shown < self._every and not last:
            return
        self._shown = now
        if self._mode is ProgressMode.json:
            _print_json(self._stream, "progress", self._source.facts())
        else:
            print(self._source.line(), file=self._stream, flush=True)

    def _view(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        rows = Table.grid(padding=(0, 2))
        for name, text in (*self._source.details(), *self._gpus.lines()):
            rows.add_row(Text(name, style="dim"), Text(text))
        fraction = self._source.fraction()
        parts: list[RenderableType] = [Text(self._source.line())]
        if fraction is not None:
            parts.append(ProgressBar(total=1.0, completed=fraction, width=60))
        return Group(*parts, rows) if rows.row_count else Group(*parts)


def resolve_mode(stream: TextIO) -> ProgressMode:
    """How progress is shown on `stream`: as asked for, or by default live in a terminal and plain elsewhere."""
    mode = progress_mode()
    if mode is ProgressMode.auto:
        return ProgressMode.live if stream.isatty() else ProgressMode.plain
    return mode


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print a message on stderr, or on `stream`; as a JSON line where those are asked for."""
    stream = stream if stream is not None else sys.stderr
    if progress_mode() is ProgressMode.json:
        _print_json(stream, "message", {"text": text})
    else:
        print(without_secrets(text), file=stream, flush=True)


def print_end(message: str, code: int) -> None:
    """Print on stderr why a command ends; as a JSON line with the exit code where those are asked for."""
    try:
        as_json = progress_mode() is ProgressMode.json
    except ValueError:  # the message may be about this very error
        as_json = False
    if as_json:
        _print_json(sys.stderr, "end", {"text": message, "exit_code": code})
    else:
        print(without_secrets(message), file=sys.stderr, flush=True)


def _print_json(stream: TextIO, event: str, facts: Mapping[str, Any]) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"event": event, "time": now, **redacted(facts)}), file=stream, flush=True)
