"""Turns the timings of training's input into the published figures and the table.

A raw turn has `case`, `workers`, `images`, and `seconds` and `cpu_seconds` (of all workers) of an epoch, and
`memory_seconds` and `cpu_memory_seconds` of the same steps on data in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from tests.benchmarks.results import number

#: Sources of training data: label in the table, and the limit of an epoch's cost as a multiple of the same steps on
#: data in memory.
TRAINING = {"cached": ("kept features", 1.1), "streaming": ("streamed images", 1.05)}

Raw = Mapping[str, Any]


def training_costs(turns: Sequence[Raw]) -> dict[str, float]:
    """An epoch's cost as a multiple of the same steps on data in memory: below 1.1 the input costs less than 10%.

    By number of workers, in seconds and in CPU-seconds; `train_{case}_vs_memory` is the greatest of a case's in
    seconds. These are medians of each round's ratio, since a slow machine slows both sides of a round.
    """
    found: dict[str, float] = {}
    for case, workers, each in _cases(turns):
        name = f"train_{case}_vs_memory"
        cost = median(turn["seconds"] / turn["memory_seconds"] for turn in each)
        found[name] = max(cost, found.get(name, cost))
        found[f"{name}_workers_{workers}"] = cost
        found[f"{name}_cpu_workers_{workers}"] = median(t["cpu_seconds"] / t["cpu_memory_seconds"] for t in each)
    return found


def make_training_table(turns: Sequence[Raw]) -> Table:
    """The published table of training: a line per data source and number of workers."""
    table, found = Table(pad_edge=False), training_costs(turns)
    table.add_column("training on", no_wrap=True)
    for heading in ("workers", "images/s", "in memory", "it ÷ in memory", "at most", "CPU-seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case, workers, each in _cases(turns):
        title, limit = TRAINING[case]
        name = f"train_{case}_vs_memory"
        table.add_row(
            title,
            str(workers),
            *(number(median(turn["images"] / turn[way] for turn in each)) for way in ("seconds", "memory_seconds")),
            number(found[f"{name}_workers_{workers}"], 3),
            number(limit, 2),
            number(found[f"{name}_cpu_workers_{workers}"], 3),
        )
    return table


def _cases(turns: Sequence[Raw]) -> Iterator[tuple[str, int, list[Raw]]]:
    for case in TRAINING:
        for workers in sorted({turn["workers"] for turn in turns}):
            each = [turn for turn in turns if (turn["case"], turn["workers"]) == (case, workers)]
            if each:
                yield case, workers, each
