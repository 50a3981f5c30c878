"""From raw timings to the figures that are published: medians, their ratios, and one table.

Knows no programs, only their timings. A raw run of a program is a mapping with `round`, `images`,
`seconds`, `steady_images_per_second` or None, `peak_bytes` or None and `same_captions` (of images).
A raw turn of training has `case`, `workers`, `images`, and `seconds` and `cpu_seconds` (of all workers)
of an epoch, and `memory_seconds` and `cpu_memory_seconds` of the same steps on data in memory.
"""

import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

#: The programs in the order of the table, and what each is called there.
PROGRAMS = {
    "job": "python -m jobs caption",
    "ray_tuned": "plain Ray Data script",
    "dataloader": "PyTorch DataLoader loop",
}
#: Ways in which data comes to a training step: what each is called in the table, and what an epoch may cost at most, as
#: a multiple of the same steps on data in memory.
TRAINING = {"cached": ("kept features", 1.1), "streaming": ("streamed images", 1.05)}
_PACKAGES = ("torch", "ray", "transformers", "pillow", "pyarrow", "numpy")

Raw = Mapping[str, Any]


def steady_rate(finished: Iterable[float]) -> float | None:
    """Images a second after the first batch, given the time at which each image was finished.

    Images of one time are one batch. The same rule as in the job's own summary, where batches are
    shards; None where there is one batch only.
    """
    batches = sorted(Counter(finished).items())
    if len(batches) < 2:
        return None
    return sum(images for _, images in batches[1:]) / (batches[-1][0] - batches[0][0])


def summarise(runs: Mapping[str, Sequence[Raw]], ceilings: Sequence[Raw], cores: int) -> dict[str, dict[str, Any]]:
    """Medians over the rounds, by program, and of the ceiling."""
    summary: dict[str, dict[str, Any]] = {}
    for name, each in runs.items():
        whole = [run["images"] / run["seconds"] for run in each]
        steady = _median(run["steady_images_per_second"] for run in each)
        seconds = median(run["seconds"] for run in each)
        summary[name] = {
            "images_per_second": median(whole),
            "steady_images_per_second": steady,
            # What a run takes beyond its images at the steady rate: starting, the first batch, ending.
            "start_up_seconds": max(0.0, seconds - each[0]["images"] / steady) if steady else None,
            "peak_bytes": _median(run["peak_bytes"] for run in each),
            "same_captions": min(run["same_captions"] for run in each),
            "images": each[0]["images"],
        }
    costs = [sum(ceiling["cpu_seconds_an_image"].values()) for ceiling in ceilings]
    stages = {name: median(c["cpu_seconds_an_image"][name] for c in ceilings) for name in _stages(ceilings)}
    summary["ceiling"] = {"images_per_second": cores / median(costs), "cpu_seconds_an_image": stages}
    return summary


def ratios(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Our figure over theirs: above 1 we are faster."""
    ours, ceiling = summary["job"], summary["ceiling"]["images_per_second"]
    found: dict[str, float | None] = {
        "job_vs_ceiling": ours["images_per_second"] / ceiling,
        "job_steady_vs_ceiling": _over(ours["steady_images_per_second"], ceiling),
    }
    for name, theirs in summary.items():
        if name not in ("job", "ceiling"):
            found[f"job_vs_{name}"] = ours["images_per_second"] / theirs["images_per_second"]
            found[f"job_steady_vs_{name}"] = _over(ours["steady_images_per_second"], theirs["steady_images_per_second"])
    return found


def training_costs(turns: Sequence[Raw]) -> dict[str, float]:
    """What an epoch costs as a multiple of the same steps on data in memory: below 1.1 the input costs less than 10%.

    By number of workers, in seconds and in CPU-seconds; `train_{case}_vs_memory` is the greatest of a case's in
    seconds. The medians of the rounds' own multiples: what slows a machine for minutes slows both ways of a round.
    """
    found: dict[str, float] = {}
    for case, workers, each in _training_cases(turns):
        name = f"train_{case}_vs_memory"
        cost = median(turn["seconds"] / turn["memory_seconds"] for turn in each)
        found[name] = max(cost, found.get(name, cost))
        found[f"{name}_workers_{workers}"] = cost
        found[f"{name}_cpu_workers_{workers}"] = median(t["cpu_seconds"] / t["cpu_memory_seconds"] for t in each)
    return found


def make_training_table(turns: Sequence[Raw]) -> Table:
    """The published table of training: a line for each way in which data comes and number of workers."""
    table, found = Table(pad_edge=False), training_costs(turns)
    table.add_column("training on", no_wrap=True)
    for heading in ("workers", "images/s", "in memory", "it ÷ in memory", "at most", "CPU-seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case, workers, each in _training_cases(turns):
        title, limit = TRAINING[case]
        name = f"train_{case}_vs_memory"
        table.add_row(
            title,
            str(workers),
            *(_number(median(turn["images"] / turn[way] for turn in each)) for way in ("seconds", "memory_seconds")),
            _number(found[f"{name}_workers_{workers}"], 3),
            _number(limit, 2),
            _number(found[f"{name}_cpu_workers_{workers}"], 3),
        )
    return table


def make_table(summary: Mapping[str, Mapping[str, Any]], found: Mapping[str, float | None]) -> Table:
    """The published table: one line a program, then the ceiling."""
    table = Table(pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("images/s", "steady", "ours ÷ it", "steady", "start-up s", "GiB", "same captions"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, title in PROGRAMS.items():
        line = summary[name]
        memory = line["peak_bytes"]
        shares = ("", "") if name == "job" else (found[f"job_vs_{name}"], found[f"job_steady_vs_{name}"])
        table.add_row(
            title,
            _number(line["images_per_second"]),
            _number(line["steady_images_per_second"]),
            *(share if isinstance(share, str) else _number(share, 2) for share in shares),
            _number(line["start_up_seconds"]),
            _number(memory / 2**30 if memory else None, 2),
            f"{line['same_captions']:,} of {line['images']:,}",
        )
    table.add_row(
        "ceiling: cores ÷ CPU-seconds an image",
        _number(summary["ceiling"]["images_per_second"]),
        "",
        _number(found["job_vs_ceiling"], 2),
        _number(found["job_steady_vs_ceiling"], 2),
        *("", "", ""),
    )
    return table


def conditions(cores: int) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_before": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _training_cases(turns: Sequence[Raw]) -> Iterator[tuple[str, int, list[Raw]]]:
    for case in TRAINING:
        for workers in sorted({turn["workers"] for turn in turns}):
            each = [turn for turn in turns if (turn["case"], turn["workers"]) == (case, workers)]
            if each:
                yield case, workers, each


def _stages(ceilings: Sequence[Raw]) -> list[str]:
    return list(ceilings[0]["cpu_seconds_an_image"])


def _median(values: Iterable[float | None]) -> float | None:
    """The median of the values, or None where one is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return median(known) if known and len(known) == len(found) else None


def _over(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    # Virtual machines often hide the name; family and model tell which it is.
    numbers = " ".join(f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts)
    return f"{facts.get('model name', platform.processor() or platform.machine())} ({numbers})" if facts else "unknown"
