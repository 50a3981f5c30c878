"""Memory of the job's processes by role, and whether it grows: a run compared with one ten times longer.

Both runs have shards of the same size, and more of them than can be in progress at once. A process's memory is its
resident memory without shared memory such as Ray's object store. Linux only.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from tests.benchmarks.bench import Bench, in_turn
from tests.benchmarks.raw import Turns

#: Photos of the shorter run; the longer has ten times as many. What a process holds grows over its first 20 or so
#: shards, until malloc has room for all that comes.
PHOTOS = 2048
LONGER = 10
_SHARD = 64
#: About how many points of its course are kept per run.
_POINTS = 40
RUNNERS = ("local", "ray")
_ROLES = {
    "driver": "driver",
    "captioner": "captioner (worker or actor)",
    "decoder": "decoder",
    "task": "Ray's tasks",
    "ray": "Ray itself",
}

Raw = Mapping[str, Any]


def measure_memory(bench: Bench, turns: Turns) -> None:
    """Rounds of a short and a long run of the job, with both runners."""
    cases = [(runner, times) for runner in RUNNERS for times in (1, LONGER)]
    for round_number, (runner, times) in in_turn(cases, bench.rounds):
        about = {"case": runner, "times": times, "round": round_number}
        if turns.have(**about):
            continue
        photos, output = bench.some_photos(PHOTOS * times), bench.folder / "memory"
        shutil.rmtree(output, ignore_errors=True)
        settings = ["runtime.device=cpu", f"runtime.runner={runner}", f"output.shard_size={_SHARD}"]
        command = ["-m", "jobs", "caption", str(photos), "-o", str(output), "--model", bench.models[0]]
        for setting in settings:
            command += ["--set", setting]
        measured = bench.python(command, f"memory-{runner}", role_of=role_of)
        every = max(1, len(measured.memory) // _POINTS)
        turns.add(
            {
                **about,
                "images": PHOTOS * times,
                "seconds": measured.seconds,
                "peak_by_role": measured.peak_by_role,
                "by_second": {round(second, 1): held for second, held in measured.memory[::every]},
            }
        )
        told = ", ".join(f"{role} {size / 2**20:,.0f} MiB" for role, size in sorted(measured.peak_by_role.items()))
        print(f"round {round_number + 1}, {PHOTOS * times:,} photos, {runner}: {told}", flush=True)


def role_of(command_line: str) -> str:
    """The role of a process of the job, from its command line."""
    if "jobs.workers.decode_child" in command_line:
        return "decoder"
    if "jobs.runners.shard_worker" in command_line or command_line.startswith("ray::MapWorker"):
        return "captioner"
    return "task" if command_line.startswith("ray::") else "ray"


def memory_figures(turns: Sequence[Raw]) -> dict[str, float]:
    """By runner and role: bytes in the longer run, and the increase over the shorter; and the greatest growth."""
    found: dict[str, float] = {}
    for runner, role, short, long in _rows(turns):
        key = f"memory_{runner}_{role}"
        found[f"{key}_bytes"] = long
        found[f"{key}_growth_bytes"] = long - short
        if role in ("driver", "captioner", "decoder"):
            found["memory_growth"] = max(long / short, found.get("memory_growth", 0.0))
    return found


def make_memory_table(turns: Sequence[Raw]) -> Table:
    """MiB by runner and role."""
    table = Table(pad_edge=False)
    table.add_column("memory of one process, at most", no_wrap=True)
    for heading in ("runner", f"{PHOTOS:,} photos: MiB", f"{PHOTOS * LONGER:,} photos: MiB", "growth"):
        table.add_column(heading, justify="right", no_wrap=True)
    for runner, role, short, long in _rows(turns):
        sizes = (f"{size / 2**20:,.0f}" for size in (short, long))
        table.add_row(_ROLES.get(role, role), runner, *sizes, f"{100 * (long / short - 1):+.1f}%")
    return table


def _rows(turns: Sequence[Raw]) -> Iterator[tuple[str, str, float, float]]:
    """Runner, role, and the medians of the shorter and the longer run, where both have them."""
    for runner in RUNNERS:
        for role in _ROLES:
            sizes = [
                [
                    turn["peak_by_role"][role]
                    for turn in turns
                    if (turn["case"], turn["times"]) == (runner, times) and role in turn["peak_by_role"]
                ]
                for times in (1, LONGER)
            ]
            if all(sizes):
                yield runner, role, median(sizes[0]), median(sizes[1])
