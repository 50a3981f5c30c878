"""Where the workers of a training run: how many, and what each asks of which kind of node.

Knows the nodes' CPUs and GPUs and the settings, and nothing of Ray: it plans, others start.

On CPUs what is asked for is only bookkeeping, so it is little enough for all workers to fit when the
largest of several nodes is lost. A GPU is asked for whole: where one is lost with its node, training
goes on with fewer workers (`min_workers`), or waits for another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal

from captioning.errors import SettingsError
from captioning.training.settings import TrainSettings
from jobs.runners.pools import Node

#: Of a node's CPUs; the rest is for what Ray itself runs there.
_SHARE = 0.9


@dataclass(frozen=True)
class Placement:
    """A plan: from `least` to `most` workers, with `cpus` CPUs each, and one GPU or none."""

    least: int
    most: int
    cpus: float
    gpu: bool
    #: GPUs close together, which talk much; on CPUs each worker where nobody else computes.
    strategy: Literal["PACK", "SPREAD"]

    def room(self, nodes: Sequence[Node]) -> int:
        """How many workers fit on these nodes."""
        return min(self.most, sum(_fit(node, self.cpus, gpu=self.gpu) for node in nodes))


def place_workers(settings: TrainSettings, nodes: Sequence[Node]) -> Placement:
    """A plan for these nodes. Raises `SettingsError` where there are fewer GPUs than workers that want one."""
    most, least = settings.workers, settings.min_workers or settings.workers
    gpus = sum(floor(node.gpus) for node in nodes)
    gpu = gpus >= least if settings.gpu is None else settings.gpu
    if gpu and gpus < least:
        raise SettingsError(
            f"{least} worker(s) need as many GPUs, and Ray has {gpus}. Lower `workers` (or `min_workers`), or train "
            "on CPUs with --set gpu=false."
        )
    threads = float(settings.threads_per_worker)
    if gpu:
        shares = [_SHARE * node.cpus / floor(node.gpus) for node in nodes if node.gpus >= 1]
        return Placement(least, most, _round_down(min(threads, *shares)), True, "PACK")
    left = sorted((node.cpus for node in nodes if node.cpus > 0), reverse=True) or [1.0]
    cpus = _largest_share(left, most, threads)
    if len(left) > 1:
        cpus = min(cpus, _largest_share(left[1:], least, threads))
    return Placement(least, most, _round_down(cpus), False, "SPREAD")


def _largest_share(cpus: Sequence[float], workers: int, most: float) -> float:
    """The most that `workers` workers can ask for on nodes of so many CPUs."""
    shares = {min(most, _SHARE * each / count) for each in cpus for count in range(1, workers + 1)}
    return max(share for share in shares if sum(floor(_SHARE * each / share + 1e-9) for each in cpus) >= workers)


def _fit(node: Node, cpus: float, *, gpu: bool) -> int:
    places = floor(node.gpus) if gpu else 1 << 30
    return min(places, floor(node.cpus / cpus)) if cpus else places


def _round_down(cpus: float) -> float:
    """Ray counts CPUs in ten-thousandths."""
    return floor(cpus * 10_000) / 10_000
