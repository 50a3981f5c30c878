"""`make bench`: compares the caption job with rivals and with what the machine allows, and measures its parts.

This is the command line; `parts` does the measuring, and saves each part's raw timings as it goes. A part can be
repeated alone, and a stopped benchmark continues with `--resume`.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from captioning.errors import CaptioningError
from tests.benchmarks.bench import LEAST_ROUNDS, Bench
from tests.benchmarks.conditions import conditions
from tests.benchmarks.parts import PARTS
from tests.benchmarks.programs import CEILING, PROGRAMS
from tests.benchmarks.raw import Turns, read_raw

_TABLE_WIDTH = 120
#: The bundled captioners; rivals run the first.
_MODELS = ("flickr-lstm", "flickr-clip-gpt2")


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line's arguments."""
    photos = os.environ.get("CAPTIONING_BENCH_PHOTOS")
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--photos",
        type=Path,
        default=Path(photos) if photos else None,
        help="folder of photos (default: CAPTIONING_BENCH_PHOTOS, else variations of photos that packages bring)",
    )
    parser.add_argument(
        "--shards",
        metavar="URI",
        default=os.environ.get("CAPTIONING_BENCH_SHARDS"),
        help="training shards (default: CAPTIONING_BENCH_SHARDS, else made ones)",
    )
    parser.add_argument("--count", type=int, default=256, help="photos to caption (default: 256)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=LEAST_ROUNDS,
        help="runs of every program (default: %(default)s; what takes seconds is repeated at least as often)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(PARTS),
        help="only this part, which keeps what is known of the others; can be repeated: "
        + "; ".join(f"{name}: {part.about}" for name, part in PARTS.items()),
    )
    parser.add_argument(
        "--program",
        action="append",
        choices=[*PROGRAMS, CEILING],
        help="only this one of the whole runs; can be repeated",
    )
    parser.add_argument(
        "--model",
        metavar="REF",
        action="append",
        help=f"a captioner; can be repeated, rivals run the first (default: {' and '.join(_MODELS)})",
    )
    parser.add_argument("--resume", action="store_true", help="go on with what was measured under the same settings")
    parser.add_argument(
        "--full-scale", action="store_true", help="the books of ten million images instead of one: an hour more"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench/results.json"), metavar="FILE")
    args = parser.parse_args(given)
    if args.count < 1 or args.rounds < 1:
        parser.error("--count and --rounds must be at least 1")
    return args


def run_parts(args: argparse.Namespace) -> None:
    """Measure the requested parts, each into a file of its own."""
    work = args.output.parent.resolve() / "work"
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        work,
        args.photos,
        args.count,
        models=tuple(args.model or _MODELS),
        rounds=args.rounds,
        programs=tuple(args.program or ()),
        shards=args.shards,
        full_scale=args.full_scale,
    )
    settings = {
        "photos": str(args.photos.resolve()) if args.photos else "made",
        "count": args.count,
        "models": bench.models,
        "shards": args.shards or "made",
        "full_scale": args.full_scale,
    }
    for name in PARTS:
        if name in (args.only or PARTS):
            path = _raw(args) / f"{name}.json"
            turns = Turns(path, settings, conditions(bench.cores), resume=args.resume)
            PARTS[name].measure(bench, turns)


def make_results(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The contents of results.json, from the parts' measurements."""
    figures: dict[str, Any] = {}
    for name, part in PARTS.items():
        if name in raw:
            figures |= part.figures(raw[name]["turns"])
    known = {name: each for name, each in raw.items() if name in PARTS}
    return {
        **figures,
        "conditions": {name: each["conditions"] for name, each in known.items()},
        "settings": {name: each["settings"] for name, each in known.items()},
        "raw": {name: each["turns"] for name, each in known.items()},
    }


def failures(results: Mapping[str, Any]) -> list[str]:
    """One line per failure."""
    turns = [(part, turn) for part, each in results["raw"].items() for turn in each if "failed" in turn]
    return [f"{part}, {turn['case']}, round {turn['round'] + 1}: {turn['failed']}" for part, turn in turns]


def main(given: list[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    args = parse_arguments(given)
    code = 0
    try:
        run_parts(args)
    except CaptioningError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\nInterrupted. Go on with --resume.", file=sys.stderr)
        code = 130
    raw = read_raw(_raw(args))
    if not raw:
        return code
    results = make_results(raw)
    args.output.write_text(json.dumps(results, indent=2) + "\n")
    tables = [table for name, part in PARTS.items() if name in raw for table in part.tables(raw[name]["turns"])]
    Console(width=max(Console().width, _TABLE_WIDTH)).print(*tables)
    with args.output.with_suffix(".txt").open("w") as file:
        Console(file=file, width=_TABLE_WIDTH).print(*tables)
    print(f"Raw timings and conditions: {args.output}")
    for line in failures(results):
        print(f"failed: {line}", file=sys.stderr)
        code = code or 1
    return code


def _raw(args: argparse.Namespace) -> Path:
    folder: Path = args.output.parent / "raw"
    return folder


if __name__ == "__main__":
    sys.exit(main())
