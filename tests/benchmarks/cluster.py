"""How a run scales with nodes: a Ray cluster of raylets on this machine, with simulated GPUs.

Every node has a GPU that takes a fixed time per shard, in which its captioner sleeps; everything else is as in a run
on a cluster: actors on GPUs, decoding on CPUs, shards staged and folded. The rate of one node is compared with that of
up to eight; and the driver's CPU time per shard shows how many nodes it could keep busy.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from rich.table import Table

from captioning.errors import UnfinishedError
from tests.benchmarks.bench import Bench, in_turn
from tests.benchmarks.raw import Turns
from tests.cluster.rehearsal import Job, Rehearsal
from tests.jobs.archive import write_photos

NODES = (1, 2, 4, 8)
#: Seconds of a simulated GPU per shard, images of a shard, and shards per node.
SECONDS, SHARD_IMAGES, SHARDS_A_NODE = 2.0, 2, 20
#: Images of a full shard, and images a second of one real GPU, to extrapolate the driver's capacity.
FULL_SHARD, GPU_RATE = 512, 1000

Raw = Mapping[str, Any]


def measure_cluster(bench: Bench, turns: Turns, nodes: Sequence[int] = NODES, shards: int = SHARDS_A_NODE) -> None:
    """Rounds of runs on clusters with these numbers of nodes, in turn."""
    for round_number, count in in_turn(nodes, bench.rounds):
        if turns.have(nodes=count, round=round_number):
            continue
        figures = take(bench.folder / "cluster", count, shards * count)
        turns.add({"nodes": count, "round": round_number, **figures})
        print(
            f"round {round_number + 1}, {count} nodes: {figures['images_per_second']:.2f} images/s of "
            f"{count * SHARD_IMAGES / SECONDS:.2f}",
            flush=True,
        )


def take(folder: Path, nodes: int, shards: int) -> dict[str, Any]:
    """A run over `shards` shards on a cluster: the rate in its middle, and its driver's CPU-seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    photos = write_photos(folder / "photos", shards * SHARD_IMAGES)
    pace = {"PACE_IDLE": "1"}
    with Rehearsal(folder / "pace", seconds=SECONDS, head_cpus=0) as rehearsal:
        for number in range(nodes):
            rehearsal.machines.add(f"node{number}", cpus=2, gpus=1)
        job = rehearsal.job(
            *("caption", photos, "-o", folder / "out", "--set", f"output.shard_size={SHARD_IMAGES}"),
            *("--set", "runtime.runner=ray"),
            environment=pace,
        )
        cpu, said = _until_the_end(job)
        busy, times = rehearsal.shares("shards"), sorted(float(line[2]) for line in rehearsal.noted("shards"))
    if job.process.returncode or len(busy) != nodes:
        raise UnfinishedError(f"The run on {nodes} nodes used {len(busy)} and ended so: {said[-2000:]}")
    shutil.rmtree(folder)
    # Nodes start one after another, and some are done before others.
    middle = range(shards // 6, shards - shards // 6)
    rate = linear_regression([times[place] for place in middle], list(middle)).slope
    return {
        "shards": shards,
        "images_per_second": SHARD_IMAGES * rate,
        "driver_cpu_seconds": cpu,
        "least_share": min(busy.values()) * nodes / sum(busy.values()),
    }


def _until_the_end(job: Job) -> tuple[float, str]:
    """CPU-seconds of the job's own process, the run's driver, and its output."""
    before = os.times()
    _, said = job.end()
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, said


def cluster_figures(turns: Sequence[Raw]) -> dict[str, float]:
    """`cluster_efficiency_N` by nodes, the driver's CPU-seconds per shard, and the images a second per driver core."""
    found: dict[str, float] = {}
    rates = _medians(turns, "images_per_second")
    least = min(rates)
    for nodes, rate in rates.items():
        if nodes > least:
            found[f"cluster_efficiency_{nodes}"] = rate * least / (rates[least] * nodes)
    cpu, shards = _medians(turns, "driver_cpu_seconds"), _medians(turns, "shards")
    most = max(rates)
    if most > least:
        # The start-up, which both runs have in common, cancels out.
        found["cluster_driver_cpu_seconds_a_shard"] = (cpu[most] - cpu[least]) / (shards[most] - shards[least])
        found["cluster_driver_images_per_second"] = FULL_SHARD / found["cluster_driver_cpu_seconds_a_shard"]
    return found


def make_cluster_table(turns: Sequence[Raw]) -> Table:
    """A line per number of nodes; below, the driver's capacity."""
    figures = cluster_figures(turns)
    table = Table(pad_edge=False)
    table.add_column("GPUs that are pretended", no_wrap=True)
    for heading in ("images/s", "of one node's", "driver CPU-s", "least busy node"):
        table.add_column(heading, justify="right", no_wrap=True)
    cpu, shares = _medians(turns, "driver_cpu_seconds"), _medians(turns, "least_share")
    for nodes, rate in _medians(turns, "images_per_second").items():
        efficiency = figures.get(f"cluster_efficiency_{nodes}")
        table.add_row(
            f"{nodes} node{'s' if nodes > 1 else ''}",
            f"{rate:.2f}",
            "" if efficiency is None else f"{efficiency:.1%}",
            f"{cpu[nodes]:.1f}",
            f"{shares[nodes]:.0%}",
        )
    if "cluster_driver_images_per_second" in figures:
        rate = figures["cluster_driver_images_per_second"]
        table.caption = (
            f"A core of the driver hands out {rate:,.0f} images/s in shards of {FULL_SHARD}: "
            f"to {rate / GPU_RATE:,.0f} GPUs of {GPU_RATE:,} images/s."
        )
        table.caption_justify = "left"
    return table


def _medians(turns: Sequence[Raw], what: str) -> dict[int, float]:
    """The runs by number of nodes, in ascending order."""
    nodes = sorted({turn["nodes"] for turn in turns})
    return {count: median(turn[what] for turn in turns if turn["nodes"] == count) for count in nodes}
