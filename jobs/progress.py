"""A run's progress: how much is done, how fast, and the time left. `display` shows it."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from jobs.display import Display

#: The current rate is measured over about this many seconds.
_RATE_WINDOW = 60.0
#: No rate is reported from less than this many seconds.
_LEAST_SECONDS = 3.0


class Progress:
    """The progress of a run over `total` images (or another `noun`), `already_done` of which were done before it.

    A context manager: `add` counts a finished shard, `print_line` prints a message.
    """

    def __init__(
        self,
        total: int,
        already_done: int = 0,
        *,
        noun: str = "image",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.already_done = already_done
        self.done = 0
        self.errors = 0
        self._noun = noun
        self._stages: Counter[str] = Counter()
        self._clock = clock
        self._started = clock()
        self._first: tuple[float, int] | None = None
        self._recent: deque[tuple[float, int]] = deque()
        self._display = Display(self, stream=stream, clock=clock)

    def __enter__(self) -> "Progress":
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)

    def print_line(self, text: str) -> None:
        """Print a line, above the live view where there is one."""
        self._display.print_line(text)

    def add(self, images: int, errors: int, stages: Mapping[str, float] | None = None) -> None:
        """Count a finished shard: its images, those that failed, and busy seconds by stage."""
        now = self._clock()
        self.done += images
        self.errors += errors
        if stages:
            self._stages.update(stages)
        if self._first is None:
            self._first = (now, self.done)
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and now - self._recent[1][0] > _RATE_WINDOW:
            self._recent.popleft()
        self._display.refresh(last=self._finished())

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def steady_rate(self) -> float | None:
        """Images a second from the first finished shard to the last, start-up left out.

        None while that time is too short to measure.
        """
        if self._first is None or not self._recent:
            return None
        seconds, images = self._recent[-1][0] - self._first[0], self.done - self._first[1]
        return images / seconds if seconds >= _LEAST_SECONDS and images else None

    def line(self) -> str:
        """Images done, errors, rate and time left, in one line."""
        at = self.already_done + self.done
        parts = [f"{at:,} of {counted(self.total, self._noun)} ({percent(at, self.total)})"]
        parts.append(counted(self.errors, "error"))
        rate, left = self._rate(), self._seconds_left()
        if rate is None and not self._finished():
            parts.append("starting" if not self.done else "measuring the rate")
        elif rate is not None:
            parts.append(f"{rate:,.1f} {self._noun}s/s")
            if left is not None:
                parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def fraction(self) -> float:
        """The fraction done, from 0 to 1."""
        return min(1.0, (self.already_done + self.done) / self.total) if self.total else 0.0

    def details(self) -> list[tuple[str, str]]:
        """The time so far, and each stage's share of the busy seconds."""
        found = [("time", duration(self.seconds))]
        busy = self._stages.total()
        if busy > 0:
            found.append(("stages", "  ".join(f"{name} {s / busy:.0%}" for name, s in self._stages.items())))
        return found

    def facts(self) -> dict[str, Any]:
        """The progress as plain values; counts are of `noun`s, times in seconds."""
        rate, left = self._rate(), self._seconds_left()
        return {
            "unit": self._noun,
            "done": self.already_done + self.done,
            "total": self.total,
            "errors": self.errors,
            "seconds": round(self.seconds, 3),
            "per_second": None if rate is None else round(rate, 3),
            "seconds_left": None if left is None else round(left, 1),
            "stages": {name: round(seconds, 3) for name, seconds in self._stages.items()},
        }

    def _finished(self) -> bool:
        return self.already_done + self.done >= self.total

    def _rate(self) -> float | None:
        """The current rate in images a second."""
        if len(self._recent) < 2:
            return None
        (start, before), (end, after) = self._recent[0], self._recent[-1]
        return (after - before) / (end - start) if end - start >= _LEAST_SECONDS else None

    def _seconds_left(self) -> float | None:
        rate = self._rate()
        if not rate or self._finished():
            return None
        return (self.total - self.already_done - self.done) / rate


def counted(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """A duration for people: `8 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def percent(part: int, whole: int) -> str:
    """A percentage, 100% only when all is done."""
    share = 100 * part / whole if whole else 100.0
    return "100%" if part >= whole else f"{min(share, 99.9):.1f}%"
