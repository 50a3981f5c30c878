"""The cost of a run's bookkeeping at one and at ten million images: seconds, CPU-seconds and memory of each step.

    python -m tests.benchmarks.scale                    a million images, and 250 and 1,000 shards
    python -m tests.benchmarks.scale --full             ten million, and 1,000, 5,000 and 20,000 shards

Every step is a process of its own, see `scale_steps`. A shard's cost is what a run takes beyond a run of one shard:
before a run's first shard is finished, others are decoded already, so counting from there would flatter short runs.
Runs of different sizes take turns, and medians are compared.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from captioning.errors import UnfinishedError
from tests.benchmarks.scale_steps import STEPS

#: Images of the steps, and shards of the runs, in order.
SMALL = (1_000_000, (1, 250, 1_000))
FULL = (10_000_000, (1, 1_000, 5_000, 1_000, 1, 20_000, 1_000, 5_000, 1, 1_000))

#: The steps of the table: label, and the limits in seconds and GiB at ten million images.
TITLES: dict[str, tuple[str, float | None, float | None]] = {
    "index": ("writing the index", 180, 1.0),
    "pending": ("finding what is pending", 60, 1.5),
    "verify": ("verify", 60, 1.0),
    "growth": ("listing again: a thousandth is new", None, None),
    "sample": ("index of a sample", None, None),
    "resume": ("99% done: until the first new shard is written", 60, None),
}

Raw = Mapping[str, Any]


def measure_scale(work: Path, images: int, shards: Sequence[int]) -> dict[str, Any]:
    """Run every step in a process of its own, with files in `work`, which is removed. Raises `UnfinishedError`."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        steps = {name: _take(name, work, images) for name in STEPS if name != "pipeline"}
        runs = [_take("pipeline", work, count) for count in shards]
    finally:
        shutil.rmtree(work)
    return {"images": images, "steps": steps, "pipeline": runs}


def _take(name: str, work: Path, size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.scale_steps", name, str(work), str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UnfinishedError(f"{' '.join(command)} ended with code {done.returncode}.")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"scale, {name} of {size:,}: {figures['seconds']:,.1f} s", flush=True)
    return figures


def scale_figures(raw: Raw) -> dict[str, float]:
    """The published figures: each step's, and how a shard's cost and the driver's memory grow with the shards."""
    found: dict[str, float] = {"scale_images": raw["images"]}
    for name in TITLES:
        figures = raw["steps"][name]
        found |= {f"scale_{name}_{what}": figures[what] for what in ("seconds", "cpu_seconds", "peak_bytes")}
    first, *_, last = run_figures(raw["pipeline"]).values()
    found["scale_shard_cost_ratio"] = last["seconds_a_shard"] / first["seconds_a_shard"]
    found["scale_shard_cpu_cost_ratio"] = last["cpu_seconds_a_shard"] / first["cpu_seconds_a_shard"]
    found["scale_driver_growth_bytes"] = last["driver_bytes_most"] - first["driver_bytes_most"]
    return found


def run_figures(runs: Sequence[Raw]) -> dict[int, dict[str, float]]:
    """By number of shards above one: a shard's cost, the longest pause, the driver's memory; medians of runs."""
    by_size: dict[int, list[Raw]] = defaultdict(list)
    for run in runs:
        by_size[run["shards"]].append(run)
    middle = {
        size: {
            "seconds": median(run["run_seconds"] for run in same),
            "cpu_seconds": median(run["run_cpu_seconds"] for run in same),
            "longest_gap": median(run["longest_gaps"][-1] for run in same if run["longest_gaps"]) if size > 1 else 0.0,
            "driver_bytes_most": median(run["driver_bytes_most"] for run in same),
        }
        for size, same in sorted(by_size.items())
    }
    start = middle.pop(1)
    for size, figures in middle.items():
        for what in ("seconds", "cpu_seconds"):
            figures[f"{what}_a_shard"] = (figures[what] - start[what]) / (size - 1)
    return middle


def make_scale_tables(raw: Raw) -> tuple[Table, Table]:
    """The published tables: a line per step, and a line per number of shards."""
    steps = Table(pad_edge=False)
    steps.add_column(f"{raw['images']:,} images", no_wrap=True)
    for heading in ("seconds", "CPU-seconds", "GiB", "at ten million: s", "GiB"):
        steps.add_column(heading, justify="right", no_wrap=True)
    for name, (title, seconds, memory) in TITLES.items():
        figures = raw["steps"][name]
        steps.add_row(
            title,
            f"{figures['seconds']:,.1f}",
            # Without the step's child processes.
            "" if name == "resume" else f"{figures['cpu_seconds']:,.1f}",
            "" if name == "resume" else f"{figures['peak_bytes'] / 2**30:.2f}",
            "" if seconds is None else f"≤ {seconds:g}",
            "" if memory is None else f"≤ {memory:g}",
        )
    runs = Table(pad_edge=False)
    runs.add_column("a run that only keeps its books", no_wrap=True)
    for heading in ("ms a shard", "CPU-ms a shard", "longest pause s", "driver MiB"):
        runs.add_column(heading, justify="right", no_wrap=True)
    for shards, run in run_figures(raw["pipeline"]).items():
        runs.add_row(
            f"{shards:,} shards",
            f"{1000 * run['seconds_a_shard']:,.1f}",
            f"{1000 * run['cpu_seconds_a_shard']:,.1f}",
            f"{run['longest_gap']:,.1f}",
            f"{run['driver_bytes_most'] / 2**20:,.0f}",
        )
    return steps, runs


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale", description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="ten million images, up to 20,000 shards: an hour")
    parser.add_argument("--work", type=Path, default=Path("build/bench/work/scale"), help="a folder; 2 GB at full size")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench/scale.json"), metavar="FILE")
    args = parser.parse_args()
    raw = measure_scale(args.work, *(FULL if args.full else SMALL))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(scale_figures(raw) | {"raw": raw}, indent=2) + "\n")
    Console(width=120).print(*make_scale_tables(raw))


if __name__ == "__main__":
    main()
