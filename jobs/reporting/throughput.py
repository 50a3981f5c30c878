"""A run's throughput over its working time, from its event log.

Pauses, in which a run was stopped or stalled, are left out, so that a run of two evenings shows two evenings.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioning.run.events import CAPTION_EVENTS, REDO_EVENTS

#: A gap longer than this, and than this multiple of the median gap, is a pause.
_PAUSE_SECONDS, _PAUSE_FACTOR = 120.0, 30.0
_MOST_POINTS = 60


@dataclass(frozen=True)
class RatePoint:
    """The mean rate over the interval of working time that ends at `seconds`."""

    seconds: float
    images_per_second: float
    busy: Mapping[str, float] = field(default_factory=dict)
    """Workers busy with each stage, on average; empty where the event log does not tell."""


@dataclass(frozen=True)
class Rate:
    """Images a second over working time; no points when the event log has fewer than two timestamps."""

    points: tuple[RatePoint, ...]
    mean: float | None
    pauses: int


@dataclass(frozen=True)
class _LogEntry:
    """An event: a start of work (`images` is None), or finished images."""

    at: float
    images: int | None
    stages: Mapping[str, float]


@dataclass(frozen=True)
class _Interval:
    """A duration of work, the images finished at its end, and their busy seconds by stage."""

    seconds: float
    images: int
    stages: Mapping[str, float]


def rate_over_time(events: Iterable[Mapping[str, Any]]) -> Rate:
    """The rate from events that have a `time` (ISO 8601) and, where shards were finished, `images` and `stages`.

    An event that starts work ends a pause. Other events are ignored.
    """
    entries = sorted(
        (entry for event in events if (entry := _log_entry(event)) is not None),
        # A start comes before what it starts.
        key=lambda entry: (entry.at, entry.images is not None),
    )
    intervals, pauses = _work_intervals(entries)
    total = sum(interval.seconds for interval in intervals)
    images = sum(interval.images for interval in intervals)
    if total <= 0 or images <= 0:
        return Rate((), None, pauses)
    ends = np.concatenate([[0.0], np.cumsum([interval.seconds for interval in intervals])])
    edges = np.linspace(0, total, min(_MOST_POINTS, len(intervals)) + 1)

    def a_second(amounts: Sequence[float]) -> NDArray[np.float64]:
        # Images are spread evenly over their interval: shards end together, but work is continuous.
        done: NDArray[np.float64] = np.interp(edges, ends, np.concatenate([[0.0], np.cumsum(amounts)]))
        return np.diff(done) / np.diff(edges)

    rates = a_second([interval.images for interval in intervals])
    names = list(dict.fromkeys(name for interval in intervals for name in interval.stages))
    busy = {name: a_second([interval.stages.get(name, 0.0) for interval in intervals]) for name in names}
    points = tuple(
        RatePoint(float(end), float(rate), {name: float(busy[name][at]) for name in names})
        for at, (end, rate) in enumerate(zip(edges[1:], rates, strict=True))
    )
    return Rate(points, images / total, pauses)


def _log_entry(event: Mapping[str, Any]) -> _LogEntry | None:
    try:
        at = datetime.fromisoformat(event["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
    if event.get("event") in CAPTION_EVENTS + REDO_EVENTS:
        return _LogEntry(at, None, {})
    images, stages = event.get("images"), event.get("stages")
    if not isinstance(images, int) or images <= 0:
        return None
    if not isinstance(stages, Mapping):
        stages = {}
    numbers = {str(name): float(value) for name, value in stages.items() if isinstance(value, int | float)}
    return _LogEntry(at, images, numbers)


def _work_intervals(entries: Sequence[_LogEntry]) -> tuple[list[_Interval], int]:
    """The intervals of work, and the number of pauses."""
    pairs = [(later.at - before.at, later) for before, later in pairwise(entries)]
    typical = median([seconds for seconds, entry in pairs if entry.images is not None] or [0.0])
    bound = max(_PAUSE_SECONDS, _PAUSE_FACTOR * typical)
    intervals: list[_Interval] = []
    pauses = 0
    for seconds, entry in pairs:
        if entry.images is None:
            pauses += seconds >= 1 and bool(intervals)
        elif seconds > bound:
            pauses += 1
            # Its images took some time too: assume the median.
            intervals.append(_Interval(typical, entry.images, entry.stages))
        else:
            intervals.append(_Interval(seconds, entry.images, entry.stages))
    return intervals, pauses
