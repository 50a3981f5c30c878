"""Runs the JPEG decoders' measurement, and makes figures and tables of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from tests.benchmarks.bench import LEAST_ROUNDS, Bench
from tests.benchmarks.photos import collect_photos
from tests.benchmarks.raw import Turns
from tests.benchmarks.results import number

#: Photos of each kind, and the longer side of the large ones.
_PHOTOS, _LARGE, _SIDE = 100, 24, 1600
OURS, PLAIN = "this package", "Pillow"

Raw = Mapping[str, Any]


def measure_jpegs(bench: Bench, turns: Turns) -> None:
    """Rounds over some of the given photos, and over large ones."""
    large = bench.folder / "photos-large"
    folders = {"photos": lambda: bench.some_photos(_PHOTOS), "large": lambda: large}
    result = bench.folder / "jpegs.json"
    for case, folder in folders.items():
        if turns.have(case=case):
            continue
        if case == "large":
            collect_photos(None, large, _LARGE, sides=[_SIDE])
        rounds = str(max(bench.rounds, LEAST_ROUNDS))
        command = ["-m", "tests.benchmarks.jpegs", str(folder()), str(result), "--rounds", rounds]
        bench.python(command, "jpegs")
        for turn in json.loads(result.read_text()):
            turns.add({"case": case, **turn})
        print(f"JPEG decoders, {case}: {rounds} rounds", flush=True)


def jpeg_figures(turns: Sequence[Raw]) -> dict[str, float]:
    """`jpeg_vs_pillow`: our decoding and resizing over Pillow's, by kind of photo, and the smaller of both."""
    found: dict[str, float] = {}
    for case, each in _cases(turns):
        seconds = _seconds(each)
        found[f"jpeg_vs_pillow_{case}"] = seconds[PLAIN] / seconds[OURS]
    return {"jpeg_vs_pillow": min(found.values()), **found} if found else {}


def make_jpeg_tables(turns: Sequence[Raw]) -> Iterator[Table]:
    """A table per kind of photo."""
    for case, each in _cases(turns):
        table = Table(pad_edge=False)
        images = each[0]["images"]
        title = f"{images} {'large photos' if case == 'large' else 'photos'}, one thread"
        table.add_column(title, no_wrap=True)
        for heading in ("images/s", "÷ Pillow", "mean difference from Pillow"):
            table.add_column(heading, justify="right", no_wrap=True)
        seconds = _seconds(each)
        for name, taken in seconds.items():
            difference = next(turn["mean_difference"] for turn in each if turn["decoder"] == name)
            rates = number(images / taken), number(seconds[PLAIN] / taken, 2)
            table.add_row(name, *rates, number(difference, 2))
        yield table


def _cases(turns: Sequence[Raw]) -> Iterator[tuple[str, list[Raw]]]:
    for case in dict.fromkeys(turn["case"] for turn in turns):
        yield case, [turn for turn in turns if turn["case"] == case]


def _seconds(turns: Sequence[Raw]) -> dict[str, float]:
    names = dict.fromkeys(turn["decoder"] for turn in turns)
    return {name: median(turn["cpu_seconds"] for turn in turns if turn["decoder"] == name) for name in names}
