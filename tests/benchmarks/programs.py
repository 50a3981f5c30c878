"""Whole runs: the caption job and its rivals, each a process of its own, in turn within each round, and the ceiling.

`results` evaluates them.
"""

import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.errors import UnfinishedError
from tests.benchmarks.bench import Bench, in_turn
from tests.benchmarks.raw import Turn, Turns


@dataclass(frozen=True)
class Program:
    """A way to caption a folder."""

    title: str
    module: str
    package: str | None = None
    """Packages that it needs beyond those of this project."""


#: In the order of the table; ours comes first.
PROGRAMS = {
    "job": Program("python -m jobs caption", "jobs"),
    "ray_script": Program("Ray Data as documented", "tests.benchmarks.rivals.ray_script"),
    "ray_tuned": Program("Ray Data, tuned", "tests.benchmarks.rivals.ray_tuned"),
    "daft": Program("Daft, one process a core", "tests.benchmarks.rivals.daft_script", package="daft"),
    "dataloader": Program("PyTorch DataLoader loop", "tests.benchmarks.rivals.dataloader_loop"),
}
CEILING = "ceiling"


def measure_programs(bench: Bench, turns: Turns) -> None:
    """Run the requested programs: all with the first captioner, and only the job with the others."""
    if not turns:
        # Captions are compared with those of the job in the same measurement.
        for path in bench.folder.glob("captions-*.json"):
            path.unlink()
    wanted = bench.programs or (*PROGRAMS, CEILING)
    first, *others = bench.models
    cases = [(name, first) for name in (*PROGRAMS, CEILING) if name in wanted]
    cases += [(name, model) for model in others for name in ("job", CEILING) if name in wanted]
    for number, (name, model) in in_turn(cases, bench.rounds):
        about = {"case": name, "model": model, "round": number}
        if turns.have(**about):
            continue
        try:
            found = run_ceiling(bench, model) if name == CEILING else run_program(bench, name, model)
        except UnfinishedError as error:
            found = {"failed": str(error)}
        turns.add({**about, **found})
        print(f"round {number + 1}, {model}: {_told(name, found)}", flush=True)


def run_program(bench: Bench, name: str, model: str) -> Turn:
    """One run of a program: its raw timings, or why it cannot be measured."""
    program = PROGRAMS[name]
    if program.package and importlib.util.find_spec(program.package) is None:
        return {"not_measured": f"the package {program.package} is not installed"}
    output = bench.folder / name
    shutil.rmtree(output, ignore_errors=True)
    if name == "job":
        command = ["jobs", "caption", str(bench.photos), "-o", str(output), "--set", "runtime.device=cpu"]
    else:
        command = [program.module, str(bench.photos), str(output), "--cores", str(bench.cores)]
    measured = bench.python(["-m", *command, "--model", model], f"{name}-{Path(model).name}")
    table = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("*.parquet"))])
    captions = dict(zip(table["image_id"].to_pylist(), table["caption"].to_pylist(), strict=True))
    names = {path.name for path in bench.photos.iterdir()}
    if captions.keys() != names or len(table) != len(names):
        raise UnfinishedError(f"{program.title} wrote {len(table)} captions of {len(names)} photos.")
    if name == "job":
        steady = json.loads((output / "_run" / "summary.json").read_text())["steady_images_per_second"]
    else:
        steady = steady_rate(table["finished"].to_pylist())
    return {
        "images": len(captions),
        "seconds": measured.seconds,
        "steady_images_per_second": steady,
        "peak_bytes": measured.peak_bytes,
        "same_captions": _compare(bench.folder / f"captions-{Path(model).name}.json", captions, ours=name == "job"),
    }


def run_ceiling(bench: Bench, model: str) -> Turn:
    """CPU-seconds per image."""
    result = bench.folder / "ceiling.json"
    command = ["-m", "tests.benchmarks.ceiling", str(bench.photos), str(result), "--model", model]
    bench.python(command, f"ceiling-{Path(model).name}")
    return {"cores": bench.cores, **json.loads(result.read_text())}


def steady_rate(finished: Iterable[float]) -> float | None:
    """Images a second after the first batch, given the time at which each image was finished.

    Images with the same time are one batch. The same rule as in the job's own summary, where batches are
    shards; None where there is one batch only.
    """
    batches = sorted(Counter(finished).items())
    if len(batches) < 2:
        return None
    return sum(images for _, images in batches[1:]) / (batches[-1][0] - batches[0][0])


def _compare(kept: Path, captions: dict[str, str], *, ours: bool) -> int | None:
    """How many captions equal those of the job's last run exactly; None before there was one."""
    before = json.loads(kept.read_text()) if kept.exists() else None
    if ours:
        kept.write_text(json.dumps(captions))
        before = before if before and before.keys() == captions.keys() else captions
    return sum(before.get(name) == text for name, text in captions.items()) if before else None


def _told(name: str, found: dict[str, Any]) -> str:
    title = "ceiling" if name == CEILING else PROGRAMS[name].title
    if name == CEILING and "cpu_seconds_an_image" in found:
        return f"{title}: {found['cores'] / sum(found['cpu_seconds_an_image'].values()):,.1f} images/s"
    if "seconds" in found:
        return f"{title}: {found['seconds']:,.1f} s"
    return f"{title}: {found.get('not_measured') or found['failed']}"
