"""`make bench`: the caption job beside other ways to do the same and what the machine allows, training's input, scale.

Every program runs as a process of its own, on the same photos, with the same captioner and the
same decoding, in turn within each round and in another order each round. Knows how the programs
are called; what is made of their timings is in `results`.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from captioning.errors import CaptioningError, UnfinishedError
from tests.benchmarks.decoding_results import decoding_ratios, make_decoding_table
from tests.benchmarks.measure import measure
from tests.benchmarks.photos import collect_photos
from tests.benchmarks.results import (
    PROGRAMS,
    conditions,
    make_table,
    make_training_table,
    ratios,
    steady_rate,
    summarise,
    training_costs,
)
from tests.benchmarks.scale import FULL, SMALL, make_scale_tables, measure_scale, scale_figures

#: The same for all: no network, no cluster, one thread a process unless the program decides otherwise.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
_TABLE_WIDTH = 120
#: Decoding takes seconds, so it can be repeated more often.
_DECODING_ROUNDS = 5


class Bench:
    """One run of the benchmark, its files in `folder`."""

    def __init__(self, folder: Path, photos: Path, images: int, model: str | None, cores: int) -> None:
        self.folder, self.photos, self.images, self.model, self.cores = folder, photos, images, model, cores
        self.environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | _ENVIRONMENT
        self.captions: dict[str, str] = {}

    def run_program(self, name: str, round_number: int) -> dict[str, Any]:
        """Run one of the programs that caption the photos; its raw timings."""
        output = self.folder / name
        shutil.rmtree(output, ignore_errors=True)
        places = [str(self.photos), *(["-o"] if name == "job" else []), str(output)]
        command = {
            "job": ["jobs", "caption", *places, "--set", "runtime.device=cpu"],
            "ray_tuned": ["tests.benchmarks.ray_data_script", *places, "--cores", str(self.cores)],
            "dataloader": ["tests.benchmarks.dataloader_loop", *places, "--cores", str(self.cores)],
        }[name]
        measured = self._python(command, f"{name}-{round_number}", with_model=True)
        table = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("*.parquet"))])
        captions = dict(zip(table["image_id"].to_pylist(), table["caption"].to_pylist(), strict=True))
        if len(captions) != self.images:
            raise UnfinishedError(f"{PROGRAMS[name]} wrote captions of {len(captions)} of {self.images} photos.")
        if name == "job":
            steady = json.loads((output / "_run" / "summary.json").read_text())["steady_images_per_second"]
        else:
            steady = steady_rate(table["finished"].to_pylist())
        self.captions = self.captions or captions
        return {
            "round": round_number,
            "images": self.images,
            "seconds": measured.seconds,
            "steady_images_per_second": steady,
            "peak_bytes": measured.peak_bytes,
            "same_captions": sum(self.captions.get(image) == text for image, text in captions.items()),
        }

    def run_ceiling(self, round_number: int) -> dict[str, Any]:
        """CPU-seconds an image needs."""
        result = self.folder / "ceiling.json"
        self._python(
            ["tests.benchmarks.ceiling", str(self.photos), str(result)], f"ceiling-{round_number}", with_model=True
        )
        return {"round": round_number, **json.loads(result.read_text())}

    def run_decoding(self, rounds: int) -> list[dict[str, Any]]:
        """Our decoding and other ways to do the same, in turn."""
        result = self.folder / "decoding.json"
        self._python(["tests.benchmarks.decoding", str(result), "--rounds", str(rounds)], "decoding")
        turns: list[dict[str, Any]] = json.loads(result.read_text())
        return turns

    def run_training(self, shards: str | None, rounds: int) -> list[dict[str, Any]]:
        """Epochs of training on data as it comes, and in memory, in turn."""
        result = self.folder / "training.json"
        given = ["--shards", shards] if shards else []
        self._python(["tests.benchmarks.training", str(result), "--rounds", str(rounds), *given], "training")
        turns: list[dict[str, Any]] = json.loads(result.read_text())
        return turns

    def _python(self, command: list[str], log: str, *, with_model: bool = False) -> Any:
        model = ["--model", self.model] if with_model and self.model else []
        return measure(
            [sys.executable, "-m", *command, *model],
            environment=self.environment,
            log=self.folder / f"{log}.log",
        )


def parse_arguments() -> argparse.Namespace:
    """What was asked for."""
    given = os.environ.get("CAPTIONING_BENCH_PHOTOS")
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--photos",
        type=Path,
        default=Path(given) if given else None,
        help="folder of photos (default: CAPTIONING_BENCH_PHOTOS, else variations of photos that packages bring)",
    )
    parser.add_argument(
        "--shards",
        metavar="URI",
        default=os.environ.get("CAPTIONING_BENCH_SHARDS"),
        help="training shards (default: CAPTIONING_BENCH_SHARDS, else made ones)",
    )
    parser.add_argument("--count", type=int, default=256, help="photos to caption (default: 256)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every program (default: 3)")
    parser.add_argument("--model", metavar="REF", help="the captioner (default: the bundled one)")
    parser.add_argument(
        "--full-scale", action="store_true", help="the books of ten million images instead of one: half an hour more"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench/results.json"), metavar="FILE")
    args = parser.parse_args()
    if args.count < 1 or args.rounds < 1:
        parser.error("--count and --rounds must be at least 1")
    return args


def run_benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; the contents of results.json."""
    folder = args.output.parent / "work"
    folder.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = conditions(cores)
    photos = folder / "photos"
    images = collect_photos(args.photos, photos, args.count)
    size = sum(path.stat().st_size for path in photos.iterdir())
    print(f"{images:,} photos of {size / images / 1000:,.0f} kB on average, {cores} cores, {args.rounds} round(s).")

    bench = Bench(folder, photos, images, args.model, cores)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PROGRAMS}
    ceilings = []
    for number in range(args.rounds):
        names = [*PROGRAMS]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            run = bench.run_program(name, number)
            runs[name].append(run)
            print(f"round {number + 1}: {PROGRAMS[name]}: {run['seconds']:,.1f} s", flush=True)
        ceilings.append(bench.run_ceiling(number))
    decoding = bench.run_decoding(max(args.rounds, _DECODING_ROUNDS))
    training = bench.run_training(args.shards, args.rounds)
    scale = measure_scale(folder / "scale", *(FULL if args.full_scale else SMALL))
    summary = summarise(runs, ceilings, cores)
    return {
        "conditions": before,
        "settings": {
            "photos": images,
            "bytes": size,
            "rounds": args.rounds,
            "model": args.model or "bundled",
            "shards": args.shards or "made",
        },
        **ratios(summary),
        **decoding_ratios(decoding),
        **training_costs(training),
        **scale_figures(scale),
        "summary": summary,
        "raw": {"runs": runs, "ceiling": ceilings, "decoding": decoding, "training": training, "scale": scale},
    }


def main() -> int:
    """Run the benchmark; returns an exit code."""
    args = parse_arguments()
    try:
        results = run_benchmark(args)
    except CaptioningError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    args.output.write_text(json.dumps(results, indent=2) + "\n")
    raw = results["raw"]
    tables = (
        make_table(results["summary"], results),
        make_decoding_table(raw["decoding"]),
        make_training_table(raw["training"]),
        *make_scale_tables(raw["scale"]),
    )
    Console(width=max(Console().width, _TABLE_WIDTH)).print(*tables)
    with args.output.with_suffix(".txt").open("w") as file:
        Console(file=file, width=_TABLE_WIDTH).print(*tables)
    print(f"Raw timings and conditions: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
