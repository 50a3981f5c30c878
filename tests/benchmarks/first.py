"""Captions a second of the bundled captioner, now and before decoding was rewritten, in turn.

The older code is extracted from the repository's history and runs in the current environment; each runs in a
process of its own with one thread. Measured in CPU time, from an image's bytes to its caption. Skipped where
there is no history.
"""

import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from captioning.errors import UnfinishedError
from tests.benchmarks.bench import LEAST_ROUNDS, ROOT, Bench, in_turn
from tests.benchmarks.raw import Turns
from tests.benchmarks.results import number

#: The last revision with the first decoding engine, before weights were packed.
FIRST = "e4dfafcbd9e07b9b2c9c2792f23870b69a8bdfb8"
_PROGRAM = Path(__file__).with_name("captioner_rate.py")
#: Photos of a round, besides the batch that warms up.
_PHOTOS = 128

Raw = Mapping[str, Any]


def measure_first(bench: Bench, turns: Turns) -> None:
    """Rounds of both, at least five."""
    old = bench.folder / "first"
    try:
        take_out(FIRST, old)
    except UnfinishedError as error:
        turns.add({"case": "first", "round": 0, "not_measured": str(error)})
        print(f"first: not measured: {error}")
        return
    photos = bench.some_photos(_PHOTOS)
    result = bench.folder / "captioner_rate.json"
    for round_number, (case, root) in in_turn([("now", ROOT), ("first", old)], max(bench.rounds, LEAST_ROUNDS)):
        if turns.have(case=case, round=round_number):
            continue
        # -P: import from `root` only, not from the program's own folder.
        command = ["-P", str(_PROGRAM), str(photos), str(result)]
        bench.python(command, f"captioner_rate-{case}", environment={"PYTHONPATH": str(root)}, folder=root)
        found = json.loads(result.read_text())
        if not Path(found.pop("code")).is_relative_to(root.resolve()):
            raise UnfinishedError(f"The captioner of {root} was to be measured, but another one was imported.")
        if round_number > 0:
            del found["captions"]
        turns.add({"case": case, "round": round_number, "revision": FIRST if case == "first" else None, **found})
        print(f"round {round_number + 1}, bundled captioner, {case}: {_rate(found):,.1f} captions/s", flush=True)


def take_out(revision: str, folder: Path) -> None:
    """Write the package at `revision` into `folder`. Raises `UnfinishedError` where git does not have it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    packed = folder / "package.tar"
    command = ["git", "-C", str(ROOT), "archive", "-o", str(packed), revision, "captioning"]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnfinishedError(f"git has no revision {revision[:12]} here") from error
    with tarfile.open(packed) as tar:
        tar.extractall(folder, filter="data")
    packed.unlink()


def first_figures(turns: Sequence[Raw]) -> dict[str, float | None]:
    """`bundled_vs_first`: captions a CPU-second now over those of the first engine."""
    rates = {case: [_rate(turn) for turn in turns if turn["case"] == case and "images" in turn] for case in _CASES}
    if not all(rates.values()):
        return {"bundled_vs_first": None}
    return {"bundled_vs_first": median(rates["now"]) / median(rates["first"])}


def make_first_table(turns: Sequence[Raw]) -> Table:
    """Both rates."""
    table = Table(pad_edge=False)
    table.add_column("the bundled captioner, one thread", no_wrap=True)
    for heading in ("captions/s", "decode ms", "encode ms", "generate ms", "same captions"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case, title in _CASES.items():
        each = [turn for turn in turns if turn["case"] == case and "images" in turn]
        if not each:
            table.add_row(title, *(["–"] * 4), "not measured")
            continue
        stages = [1000 * median(turn["cpu_seconds_an_image"][stage] for turn in each) for stage in _STAGES]
        table.add_row(
            title, number(median(map(_rate, each))), *(number(stage) for stage in stages), _agreement(turns, each)
        )
    return table


_CASES = {"now": "now", "first": f"at {FIRST[:12]}, before decoding was rewritten"}
_STAGES = ("decode", "encode", "generate")


def _rate(turn: Raw) -> float:
    return 1 / sum(turn["cpu_seconds_an_image"].values())


def _agreement(turns: Sequence[Raw], each: Sequence[Raw]) -> str:
    ours = next((turn["captions"] for turn in turns if turn["case"] == "now" and "captions" in turn), [])
    same = sum(a == b for a, b in zip(ours, each[0]["captions"], strict=False))
    return f"{same} of {each[0]['images']}"
