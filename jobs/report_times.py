"""How fast a run was over its working time, from its diary. Knows times and counts only.

A run may be stopped and gone on with, and stand still in between: such pauses are left out, so
that a run of two evenings shows two evenings.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

#: A silence longer than this, and than that many usual ones, is a pause.
_PAUSE_SECONDS, _PAUSE_FACTOR = 120.0, 30.0
_MOST_POINTS = 60


@dataclass(frozen=True)
class RatePoint:
    """The mean rate over the stretch of working time that ends at `seconds`."""

    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Rate:
    """Images a second over working time; no points when the diary has fewer than two times."""

    points: tuple[RatePoint, ...]
    mean: float | None
    pauses: int


def rate_over_time(events: Iterable[Mapping[str, Any]]) -> Rate:
    """The rate from events that have a `time` (ISO 8601) and, where shards were finished, `images`.

    An event whose name begins with `start` ends a pause. Other events are passed over.
    """
    marks = sorted(mark for event in events if (mark := _mark(event)) is not None)
    stretches, pauses = _stretches(marks)
    total = sum(seconds for seconds, _ in stretches)
    images = sum(number for _, number in stretches)
    if total <= 0 or images <= 0:
        return Rate((), None, pauses)
    ends = np.cumsum([seconds for seconds, _ in stretches])
    done = np.cumsum([number for _, number in stretches])
    # Images of a stretch are taken as finished evenly over it: shards end together, work does not.
    edges = np.linspace(0, total, min(_MOST_POINTS, len(stretches)) + 1)
    at = np.interp(edges, np.concatenate([[0.0], ends]), np.concatenate([[0.0], done]))
    rates = np.diff(at) / np.diff(edges)
    points = tuple(RatePoint(float(end), float(rate)) for end, rate in zip(edges[1:], rates, strict=True))
    return Rate(points, images / total, pauses)


def _mark(event: Mapping[str, Any]) -> tuple[float, int, int] | None:
    """(time, order of events at one time, images): a start comes before what it starts."""
    try:
        at = datetime.fromisoformat(event["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
    if str(event.get("event", "")).startswith("start"):
        return at, 0, -1
    images = event.get("images")
    return (at, 1, images) if isinstance(images, int) and images > 0 else None


def _stretches(marks: Sequence[tuple[float, int, int]]) -> tuple[list[tuple[float, int]], int]:
    """(seconds, images finished at their end) of the stretches of work, and the number of pauses."""
    pairs = [(later[0] - before[0], later[2]) for before, later in pairwise(marks)]
    usual = median([seconds for seconds, images in pairs if images >= 0] or [0.0])
    bound = max(_PAUSE_SECONDS, _PAUSE_FACTOR * usual)
    stretches: list[tuple[float, int]] = []
    pauses = 0
    for seconds, images in pairs:
        if images < 0:
            pauses += seconds >= 1 and bool(stretches)
        elif seconds > bound:
            pauses += 1
            # Its images were made in some time: the usual one.
            stretches.append((usual, images))
        else:
            stretches.append((seconds, images))
    return stretches, pauses
