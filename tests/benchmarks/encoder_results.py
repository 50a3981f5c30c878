"""Runs the benchmark of the image encoder's back ends and precisions, and makes its figures and tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from captioning.errors import UnfinishedError
from tests.benchmarks.bench import LEAST_ROUNDS, Bench, in_turn
from tests.benchmarks.encoders import WAYS
from tests.benchmarks.raw import Turns
from tests.benchmarks.results import by_model, key_of, number

_PHOTOS = 64
#: Precision and back end. `auto` is a captioner's default; `eager` is plain PyTorch, channels-last.
PLAIN, OURS = ("fp32", "eager"), ("fp32", "auto")
_CASES = (*WAYS, ("fp32", "compile"))

Raw = Mapping[str, Any]


def measure_encoders(bench: Bench, turns: Turns) -> None:
    """Run rounds of every configuration and captioner, at least five, each in its own process."""
    photos, result = bench.some_photos(_PHOTOS), bench.folder / "encoders.json"
    cases = [(model, way) for model in bench.models for way in _CASES]
    for round_number, (model, (precision, encoder)) in in_turn(cases, max(bench.rounds, LEAST_ROUNDS)):
        about = {"case": f"{precision}, {encoder}", "model": model, "round": round_number}
        if turns.have(**about):
            continue
        command = ["-m", "tests.benchmarks.encoders", str(result), "--photos", str(photos), "--model", model]
        found: dict[str, Any]
        try:
            bench.python([*command, "--way", f"{precision},{encoder}"], f"encoders-{Path(model).name}")
            found = json.loads(result.read_text())
        except UnfinishedError as error:
            found = {"not_measured": str(error)}
        if round_number > 0:
            found.pop("captions", None)
        turns.add({**about, "precision": precision, "encoder": encoder, **found})
        shown = f"{1000 * found['encode']:.1f} CPU-ms an image" if "encode" in found else "not measured"
        print(f"round {round_number + 1}, encoder of {model}, {precision}, {encoder}: {shown}", flush=True)


def encoder_figures(turns: Sequence[Raw]) -> dict[str, float]:
    """`encoder_vs_eager`: the default's speed over plain PyTorch's, the minimum over the captioners."""
    found: dict[str, float] = {}
    for model, each in by_model(turns):
        seconds = _medians(each, "encode")
        if OURS in seconds and PLAIN in seconds:
            found[f"encoder_vs_eager_{key_of(model)}"] = seconds[PLAIN] / seconds[OURS]
    return {"encoder_vs_eager": min(found.values()), **found} if found else {}


def make_encoder_tables(turns: Sequence[Raw]) -> Iterator[Table]:
    """A table for each captioner."""
    for model, each in by_model(turns):
        table = Table(pad_edge=False)
        table.add_column(f"encoder of {model}, one thread", no_wrap=True)
        for heading in ("encode ms", "eager ÷ it", "load s", "peak MiB", "same captions"):
            table.add_column(heading, justify="right", no_wrap=True)
        encode, load, peak = (_medians(each, what) for what in ("encode", "load", "peak"))
        captions = {(turn["precision"], turn["encoder"]): turn["captions"] for turn in each if "captions" in turn}
        for way in dict.fromkeys((turn["precision"], turn["encoder"]) for turn in each):
            if way not in encode:
                table.add_row(", ".join(way), *(["–"] * 4), "not measured")
                continue
            same = "–"
            if way in captions and PLAIN in captions:
                equal = sum(a == b for a, b in zip(captions[way], captions[PLAIN], strict=True))
                same = f"{equal} of {len(captions[way])}"
            table.add_row(
                ", ".join(way),
                number(1000 * encode[way]),
                number(encode[PLAIN] / encode[way], 2) if PLAIN in encode else "–",
                number(load[way], 2),
                number(peak[way] / 2**20, 0),
                same,
            )
        yield table


def _medians(turns: Sequence[Raw], what: str) -> dict[tuple[str, str], float]:
    timed = [((turn["precision"], turn["encoder"]), turn[what]) for turn in turns if what in turn]
    return {way: median(value for other, value in timed if other == way) for way in dict.fromkeys(w for w, _ in timed)}
