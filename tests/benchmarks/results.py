"""Turns raw timings of whole runs into the published figures: medians, their ratios, and the tables.

A raw run is a mapping with `case` (the program), `model`, `round`, `images`, `seconds`,
`steady_images_per_second` or None, `peak_bytes` or None and `same_captions` (of images) or None; the
ceiling's has `cores` and `cpu_seconds_an_image`, by stage. A run without a result has the reason in
`not_measured` or `failed`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from tests.benchmarks.programs import CEILING, PROGRAMS

Raw = Mapping[str, Any]
Summary = dict[str, dict[str, Any]]


def summarise(turns: Sequence[Raw]) -> Summary:
    """Medians over the rounds of one captioner, by program, and of the ceiling."""
    summary: Summary = {}
    for name in PROGRAMS:
        each = [turn for turn in turns if turn["case"] == name and "seconds" in turn]
        if not each:
            continue
        steady = _median(run["steady_images_per_second"] for run in each)
        seconds = median(run["seconds"] for run in each)
        same = [run["same_captions"] for run in each if run["same_captions"] is not None]
        summary[name] = {
            "images_per_second": each[0]["images"] / seconds,
            "steady_images_per_second": steady,
            # What a run takes beyond its images at the steady rate: starting, the first batch, ending.
            "start_up_seconds": max(0.0, seconds - each[0]["images"] / steady) if steady else None,
            "peak_bytes": _median(run["peak_bytes"] for run in each),
            "same_captions": min(same) if same else None,
            "images": each[0]["images"],
            "rounds": len(each),
        }
    ceilings = [turn for turn in turns if turn["case"] == CEILING and "cpu_seconds_an_image" in turn]
    if ceilings:
        costs = [ceiling["cpu_seconds_an_image"] for ceiling in ceilings]
        summary[CEILING] = {
            "images_per_second": ceilings[0]["cores"] / median(sum(cost.values()) for cost in costs),
            "cpu_seconds_an_image": {stage: median(cost[stage] for cost in costs) for stage in costs[0]},
        }
    return summary


def ratios(turns: Sequence[Raw]) -> dict[str, float | None]:
    """Our figure over theirs: above 1 ours is faster. The smallest of all captioners', then each one's by name."""
    cases: dict[str, dict[str, float | None]] = {}
    for model, each in by_model(turns):
        for key, value in _ratios(summarise(each)).items():
            cases.setdefault(key, {})[model] = value
    least = {key: _least(values.values()) for key, values in cases.items()}
    return least | {f"{key}_{key_of(model)}": value for key, values in cases.items() for model, value in values.items()}


def run_figures(turns: Sequence[Raw]) -> dict[str, Any]:
    """The ratios, and `summary`: the medians by captioner and program."""
    return ratios(turns) | {"summary": {model: summarise(each) for model, each in by_model(turns)}}


def key_of(model: str) -> str:
    """A captioner's REF as part of a key."""
    return re.sub(r"\W+", "_", model.rstrip("/").rpartition("/")[2]).lower()


def by_model(turns: Sequence[Raw]) -> Iterator[tuple[str, list[Raw]]]:
    """The captioners, each with its runs."""
    for model in dict.fromkeys(turn["model"] for turn in turns):
        yield model, [turn for turn in turns if turn["model"] == model]


def make_tables(turns: Sequence[Raw]) -> Iterator[Table]:
    """A table per captioner: a line per program, then the ceiling."""
    for model, each in by_model(turns):
        yield _make_table(model, each)


def _ratios(summary: Summary) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    ours = summary.get("job")
    for name, theirs in summary.items():
        if ours is None or name == "job":
            continue
        whole = ours["images_per_second"] / theirs["images_per_second"]
        steady = ours["steady_images_per_second"]
        if name == CEILING:
            found["job_vs_ceiling"] = _over(steady, theirs["images_per_second"])
            found["job_whole_vs_ceiling"] = whole
        else:
            found[f"job_vs_{name}"] = whole
            found[f"job_steady_vs_{name}"] = _over(steady, theirs["steady_images_per_second"])
    return found


def _make_table(model: str, turns: Sequence[Raw]) -> Table:
    summary, found = summarise(turns), _ratios(summarise(turns))
    table = Table(pad_edge=False)
    table.add_column(f"whole runs: {model}", no_wrap=True)
    for heading in ("images/s", "steady", "ours ÷ it", "steady", "start-up s", "GiB", "same captions"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, program in PROGRAMS.items():
        if name in summary:
            line = summary[name]
            memory = line["peak_bytes"]
            shares = ("", "") if name == "job" else (found.get(f"job_vs_{name}"), found.get(f"job_steady_vs_{name}"))
            same = line["same_captions"]
            table.add_row(
                program.title,
                number(line["images_per_second"]),
                number(line["steady_images_per_second"]),
                *(share if isinstance(share, str) else number(share, 2) for share in shares),
                number(line["start_up_seconds"]),
                number(memory / 2**30 if memory else None, 2),
                "–" if same is None else f"{same:,} of {line['images']:,}",
            )
        elif any(turn["case"] == name for turn in turns):
            table.add_row(program.title, *(["–"] * 6), "not measured")
    if CEILING in summary:
        table.add_row(
            "ceiling: cores ÷ CPU-seconds an image",
            number(summary[CEILING]["images_per_second"]),
            "",
            number(found.get("job_whole_vs_ceiling"), 2),
            number(found.get("job_vs_ceiling"), 2),
            *("", "", ""),
        )
    return table


def number(value: float | None, digits: int = 1) -> str:
    """A figure formatted for a table."""
    return "–" if value is None else f"{value:,.{digits}f}"


def _least(values: Iterable[float | None]) -> float | None:
    """The smallest of the values, or None where one is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return min(known) if known and len(known) == len(found) else None


def _median(values: Iterable[float | None]) -> float | None:
    """The median of the values, or None where one is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return median(known) if known and len(known) == len(found) else None


def _over(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None
