"""How fast a run was over its working time, from its event log. Knows times and counts only.

A run may be stopped and gone on with, and stand still in between: such pauses are left out, so
that a run of two evenings shows two evenings.
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

#: A silence longer than this, and than that many usual ones, is a pause.
_PAUSE_SECONDS, _PAUSE_FACTOR = 120.0, 30.0
_MOST_POINTS = 60


@dataclass(frozen=True)
class RatePoint:
    """The mean rate over the stretch of working time that ends at `seconds`."""

    seconds: float
    images_per_second: float
    busy: Mapping[str, float] = field(default_factory=dict)
    """By stage, how many workers were busy with it on average; empty where the event log does not tell."""


@dataclass(frozen=True)
class Rate:
    """Images a second over working time; no points when the event log has fewer than two times."""

    points: tuple[RatePoint, ...]
    mean: float | None
    pauses: int


@dataclass(frozen=True)
class _Mark:
    """A line of the event log: a start (`images` is None), or images that were finished."""

    at: float
    images: int | None
    stages: Mapping[str, float]


@dataclass(frozen=True)
class _Stretch:
    """Seconds of work, the images finished at their end, and the busy seconds these took by stage."""

    seconds: float
    images: int
    stages: Mapping[str, float]


def rate_over_time(events: Iterable[Mapping[str, Any]]) -> Rate:
    """The rate from events that have a `time` (ISO 8601) and, where shards were finished, `images` and `stages`.

    One that begins a stretch of work ends a pause. Other events are passed over.
    """
    marks = sorted(
        (mark for event in events if (mark := _mark(event)) is not None),
        # A start comes before what it starts.
        key=lambda mark: (mark.at, mark.images is not None),
    )
    stretches, pauses = _stretches(marks)
    total = sum(stretch.seconds for stretch in stretches)
    images = sum(stretch.images for stretch in stretches)
    if total <= 0 or images <= 0:
        return Rate((), None, pauses)
    ends = np.concatenate([[0.0], np.cumsum([stretch.seconds for stretch in stretches])])
    edges = np.linspace(0, total, min(_MOST_POINTS, len(stretches)) + 1)

    def a_second(amounts: Sequence[float]) -> NDArray[np.float64]:
        # What a stretch brought is taken as done evenly over it: shards end together, work does not.
        done: NDArray[np.float64] = np.interp(edges, ends, np.concatenate([[0.0], np.cumsum(amounts)]))
        return np.diff(done) / np.diff(edges)

    rates = a_second([stretch.images for stretch in stretches])
    names = list(dict.fromkeys(name for stretch in stretches for name in stretch.stages))
    busy = {name: a_second([stretch.stages.get(name, 0.0) for stretch in stretches]) for name in names}
    points = tuple(
        RatePoint(float(end), float(rate), {name: float(busy[name][at]) for name in names})
        for at, (end, rate) in enumerate(zip(edges[1:], rates, strict=True))
    )
    return Rate(points, images / total, pauses)


def _mark(event: Mapping[str, Any]) -> _Mark | None:
    try:
        at = datetime.fromisoformat(event["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
    if event.get("event") in CAPTION_EVENTS + REDO_EVENTS:
        return _Mark(at, None, {})
    images, stages = event.get("images"), event.get("stages")
    if not isinstance(images, int) or images <= 0:
        return None
    if not isinstance(stages, Mapping):
        stages = {}
    numbers = {str(name): float(value) for name, value in stages.items() if isinstance(value, int | float)}
    return _Mark(at, images, numbers)


def _stretches(marks: Sequence[_Mark]) -> tuple[list[_Stretch], int]:
    """The stretches of work, and the number of pauses."""
    pairs = [(later.at - before.at, later) for before, later in pairwise(marks)]
    usual = median([seconds for seconds, mark in pairs if mark.images is not None] or [0.0])
    bound = max(_PAUSE_SECONDS, _PAUSE_FACTOR * usual)
    stretches: list[_Stretch] = []
    pauses = 0
    for seconds, mark in pairs:
        if mark.images is None:
            pauses += seconds >= 1 and bool(stretches)
        elif seconds > bound:
            pauses += 1
            # Its images were made in some time: the usual one.
            stretches.append(_Stretch(usual, mark.images, mark.stages))
        else:
            stretches.append(_Stretch(seconds, mark.images, mark.stages))
    return stretches, pauses
