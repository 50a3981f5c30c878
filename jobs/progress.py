"""How far a run is, shown where people look: a live line in a terminal, else a plain line now and then.

Knows counts and seconds, nothing of images, Ray or files.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

#: Seconds between two plain lines.
PLAIN_EVERY = 10.0
#: The present rate is that of about the last this many seconds.
_RATE_WINDOW = 60.0
#: No rate is told from less than this many seconds.
_LEAST_SECONDS = 3.0


class Progress:
    """The progress of one run over `total` images, `already_done` of which were done before it.

    A context manager: `say` prints a line, `add` counts what a shard brought.
    """

    def __init__(
        self,
        total: int,
        already_done: int = 0,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.already_done = already_done
        self.done = 0
        self.errors = 0
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._started = clock()
        self._first: tuple[float, int] | None = None
        self._recent: deque[tuple[float, int]] = deque()
        self._printed = self._started
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self._stream.isatty():
            console = Console(file=self._stream)
            self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Print one line, above the live line where there is one."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def add(self, images: int, errors: int) -> None:
        """Count a finished shard of `images` images, `errors` of which failed."""
        now = self._clock()
        self.done += images
        self.errors += errors
        if self._first is None:
            self._first = (now, self.done)
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and now - self._recent[1][0] > _RATE_WINDOW:
            self._recent.popleft()
        if self._live is None and (now - self._printed >= PLAIN_EVERY or self._finished()):
            self._printed = now
            print(self.line(), file=self._stream, flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def steady_rate(self) -> float | None:
        """Images a second from the first finished shard to the last, start-up left out.

        None while that is too short a time to say.
        """
        if self._first is None or not self._recent:
            return None
        seconds, images = self._recent[-1][0] - self._first[0], self.done - self._first[1]
        return images / seconds if seconds >= _LEAST_SECONDS and images else None

    def line(self) -> str:
        """Done of total, errors, rate and time left, in one line."""
        at = self.already_done + self.done
        parts = [f"{at:,} of {self.total:,} images ({percent(at, self.total)})"]
        parts.append(counted(self.errors, "error"))
        rate = self._rate()
        if rate is None and not self._finished():
            parts.append("starting" if not self.done else "measuring the rate")
        elif rate is not None:
            parts.append(f"{rate:,.1f} images/s")
            if not self._finished():
                parts.append(f"{duration((self.total - at) / rate)} left")
        return ", ".join(parts)

    def _finished(self) -> bool:
        return self.already_done + self.done >= self.total

    def _rate(self) -> float | None:
        """Images a second of late."""
        if len(self._recent) < 2:
            return None
        (start, before), (end, after) = self._recent[0], self._recent[-1]
        return (after - before) / (end - start) if end - start >= _LEAST_SECONDS else None

    def _render(self) -> Text:
        return Text(f"{self.line()}  [{duration(self.seconds)}]")


def counted(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def percent(part: int, whole: int) -> str:
    """A percentage that says 100% only when all is done."""
    share = 100 * part / whole if whole else 100.0
    return "100%" if part >= whole else f"{min(share, 99.9):.1f}%"
