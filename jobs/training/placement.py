"""Plans how many training workers to start and which resources each requests, from the nodes' CPUs and GPUs.

CPU requests are mere bookkeeping for Ray, so they are small enough for all workers to fit after the loss of the
largest of several nodes. A GPU is requested whole: if one is lost with its node, training goes on with fewer
workers (`min_workers`) or waits for another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal

from captioning.errors import SettingsError
from captioning.training.settings import TrainSettings
from jobs.runners.pools import Node

#: The share of a node's CPUs to request; the rest is for Ray's own processes.
_CPU_SHARE = 0.9


@dataclass(frozen=True)
class Placement:
    """A plan: `min_workers` to `max_workers` workers with `cpus` CPUs each, and one GPU or none."""

    min_workers: int
    max_workers: int
    cpus: float
    gpu: bool
    #: GPU workers are packed, as they communicate much; CPU workers are spread over the nodes.
    strategy: Literal["PACK", "SPREAD"]

    def capacity(self, nodes: Sequence[Node]) -> int:
        """How many workers fit on these nodes, `max_workers` at most."""
        return min(self.max_workers, sum(_fit(node, self.cpus, gpu=self.gpu) for node in nodes))


def place_workers(settings: TrainSettings, nodes: Sequence[Node]) -> Placement:
    """A plan for these nodes. Raises `SettingsError` if there are fewer GPUs than workers that need one."""
    max_workers, min_workers = settings.workers, settings.min_workers or settings.workers
    gpus = sum(floor(node.gpus) for node in nodes)
    gpu = gpus >= min_workers if settings.gpu is None else settings.gpu
    if gpu and gpus < min_workers:
        raise SettingsError(
            f"{min_workers} worker(s) need one GPU each, and Ray has {gpus}. Lower `workers` (or `min_workers`), or "
            "train on CPUs with --set gpu=false."
        )
    threads = float(settings.threads_per_worker)
    if gpu:
        per_gpu = [_CPU_SHARE * node.cpus / floor(node.gpus) for node in nodes if node.gpus >= 1]
        return Placement(min_workers, max_workers, _round_down(min(threads, *per_gpu)), True, "PACK")
    node_cpus = sorted((node.cpus for node in nodes if node.cpus > 0), reverse=True) or [1.0]
    cpus = _largest_request(node_cpus, max_workers, threads)
    if len(node_cpus) > 1:
        cpus = min(cpus, _largest_request(node_cpus[1:], min_workers, threads))
    return Placement(min_workers, max_workers, _round_down(cpus), False, "SPREAD")


def _largest_request(node_cpus: Sequence[float], workers: int, limit: float) -> float:
    """The most CPUs, `limit` at most, that each of `workers` workers can request on nodes with `node_cpus`."""
    usable = [_CPU_SHARE * cpus for cpus in node_cpus]
    requests = {min(limit, cpus / count) for cpus in usable for count in range(1, workers + 1)}
    return max(request for request in requests if sum(floor(cpus / request + 1e-9) for cpus in usable) >= workers)


def _fit(node: Node, cpus: float, *, gpu: bool) -> int:
    limit = floor(node.gpus) if gpu else 1 << 30
    return min(limit, floor(node.cpus / cpus)) if cpus else limit


def _round_down(cpus: float) -> float:
    """Ray counts CPUs in ten-thousandths."""
    return floor(cpus * 10_000) / 10_000
