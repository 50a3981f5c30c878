"""The cost of a small job: ten photos from start to table, compared with bare Python that captions them.

Two bare programs: this package's captioner, and plain PyTorch on the same weights. The faster one counts.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
from rich.table import Table

from captioning.errors import UnfinishedError
from tests.benchmarks.bench import LEAST_ROUNDS, Bench, in_turn
from tests.benchmarks.raw import Turns
from tests.benchmarks.results import by_model, number

PHOTOS = 10
_CASES = {
    "job": "python -m jobs caption",
    "bare": "bare Python, this captioner",
    "bare_plain": "bare Python, plain PyTorch",
}

Raw = Mapping[str, Any]


def measure_start(bench: Bench, turns: Turns) -> None:
    """Rounds of all, at least five, for every captioner."""
    photos = bench.some_photos(PHOTOS)
    cases = [(case, model) for model in bench.models for case in _CASES]
    for round_number, (case, model) in in_turn(cases, max(bench.rounds, LEAST_ROUNDS)):
        if turns.have(case=case, model=model, round=round_number):
            continue
        output = bench.folder / "start"
        shutil.rmtree(output, ignore_errors=True)
        command = {
            "job": ["-m", "jobs", "caption", str(photos), "-o", str(output), "--set", "runtime.device=cpu"],
            "bare": ["-m", "tests.benchmarks.bare", str(photos)],
            "bare_plain": ["-m", "tests.benchmarks.bare", str(photos), "--plain"],
        }[case]
        measured = bench.python([*command, "--model", model], f"start-{case}-{Path(model).name}")
        rows = sum(pq.read_metadata(path).num_rows for path in output.glob("*.parquet"))
        if case == "job" and rows != PHOTOS:
            raise UnfinishedError(f"The job wrote {rows} rows of {PHOTOS} photos.")
        turns.add(
            {
                "case": case,
                "model": model,
                "round": round_number,
                "seconds": measured.seconds,
                "peak_bytes": measured.peak_bytes,
            }
        )
        print(f"round {round_number + 1}, ten photos, {model}, {_CASES[case]}: {measured.seconds:,.1f} s", flush=True)


def start_figures(turns: Sequence[Raw]) -> dict[str, float]:
    """`start_seconds_10` and `start_vs_bare`, each the greatest of the captioners' (here less is better)."""
    found: dict[str, float] = {}
    for _, seconds in _medians(turns):
        bare = [seconds[case] for case in ("bare", "bare_plain") if case in seconds]
        if "job" in seconds and bare:
            found["start_seconds_10"] = max(seconds["job"], found.get("start_seconds_10", 0.0))
            found["start_vs_bare"] = max(seconds["job"] / min(bare), found.get("start_vs_bare", 0.0))
    return found


def make_start_table(turns: Sequence[Raw]) -> Table:
    """Seconds by captioner."""
    models = list(_medians(turns))
    table = Table(pad_edge=False)
    table.add_column(f"{PHOTOS} photos, start to captions", no_wrap=True)
    for model, _ in models:
        table.add_column(f"{model} s", justify="right", no_wrap=True)
    for case, title in _CASES.items():
        table.add_row(title, *(number(seconds.get(case)) for _, seconds in models))
    return table


def _medians(turns: Sequence[Raw]) -> Iterator[tuple[str, dict[str, float]]]:
    for model, each in by_model(turns):
        cases = dict.fromkeys(turn["case"] for turn in each)
        yield model, {case: median(turn["seconds"] for turn in each if turn["case"] == case) for case in cases}
