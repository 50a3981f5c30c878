"""The parts of the benchmark by name: how each is measured, its figures, and its tables."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from tests.benchmarks.bench import LEAST_ROUNDS, Bench
from tests.benchmarks.cluster import cluster_figures, make_cluster_table, measure_cluster
from tests.benchmarks.decoding_cases import CASES
from tests.benchmarks.decoding_results import decoding_ratios, make_decoding_table
from tests.benchmarks.encoder_results import encoder_figures, make_encoder_tables, measure_encoders
from tests.benchmarks.first import first_figures, make_first_table, measure_first
from tests.benchmarks.jpeg_results import jpeg_figures, make_jpeg_tables, measure_jpegs
from tests.benchmarks.memory import make_memory_table, measure_memory, memory_figures
from tests.benchmarks.programs import measure_programs
from tests.benchmarks.raw import Turn, Turns
from tests.benchmarks.results import make_tables, run_figures
from tests.benchmarks.scale import FULL, SMALL, make_scale_tables, measure_scale, scale_figures
from tests.benchmarks.start import make_start_table, measure_start, start_figures
from tests.benchmarks.training_results import make_training_table, training_costs


@dataclass(frozen=True)
class Part:
    """A part of the benchmark."""

    about: str
    measure: Callable[[Bench, Turns], None]
    figures: Callable[[Sequence[Turn]], Mapping[str, Any]]
    tables: Callable[[Sequence[Turn]], Iterable[Table]]


def measure_decoding(bench: Bench, turns: Turns) -> None:
    """Our decoding and other methods, in turn, one process per case."""
    result, rounds = bench.folder / "decoding.json", max(bench.rounds, LEAST_ROUNDS)
    for case in CASES:
        if turns.have(case=case, round=rounds - 1):
            continue
        command = ["-m", "tests.benchmarks.decoding", str(result), "--rounds", str(rounds), "--case", case]
        bench.python(command, "decoding")
        for turn in json.loads(result.read_text()):
            turns.add(turn)
        print(f"decoding, {case}: {rounds} rounds", flush=True)


def measure_training(bench: Bench, turns: Turns) -> None:
    """Epochs of training with the input pipeline, and on data in memory, in turn."""
    if turns.have(case="cached"):
        return
    result = bench.folder / "training.json"
    given = ["--shards", bench.shards] if bench.shards else []
    bench.python(["-m", "tests.benchmarks.training", str(result), "--rounds", str(bench.rounds), *given], "training")
    for turn in json.loads(result.read_text()):
        turns.add(turn)


def measure_books(bench: Bench, turns: Turns) -> None:
    """The cost of a run's bookkeeping."""
    if not turns.have(case="scale"):
        sizes = FULL if bench.full_scale else SMALL
        turns.add({"case": "scale", **measure_scale(bench.folder / "scale", *sizes)})


PARTS = {
    "jobs": Part("whole runs beside the rivals' and the ceiling", measure_programs, run_figures, make_tables),
    "decoding": Part(
        "decoding beside `generate` and its floor",
        measure_decoding,
        decoding_ratios,
        lambda turns: [make_decoding_table(turns)],
    ),
    "first": Part(
        "the bundled captioner beside an older revision",
        measure_first,
        first_figures,
        lambda turns: [make_first_table(turns)],
    ),
    "start": Part("ten photos", measure_start, start_figures, lambda turns: [make_start_table(turns)]),
    "memory": Part(
        "memory by role, and its growth", measure_memory, memory_figures, lambda turns: [make_memory_table(turns)]
    ),
    "encoders": Part("the image encoder's back ends", measure_encoders, encoder_figures, make_encoder_tables),
    "jpegs": Part("JPEG decoders", measure_jpegs, jpeg_figures, make_jpeg_tables),
    "training": Part("training's input", measure_training, training_costs, lambda turns: [make_training_table(turns)]),
    "cluster": Part(
        "one to eight nodes whose GPUs are pretended",
        measure_cluster,
        cluster_figures,
        lambda turns: [make_cluster_table(turns)],
    ),
    "scale": Part(
        "the books of a million images",
        measure_books,
        lambda turns: scale_figures(turns[0]),
        lambda turns: make_scale_tables(turns[0]),
    ),
}
