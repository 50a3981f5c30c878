"""Plans the pools of a run: how many captioners and decoding tasks, and the resources that each requests.

Input are the settings and the CPUs and GPUs of the nodes; the runners start the pools.

A plan cannot deadlock, whichever node is lost: wherever Ray places the captioners, and however many of them are
pending, a decoding task fits on some node. Decoding requests another amount than a captioner, so that Ray Data
does not fuse the two. The requests are bookkeeping only: the operating system shares out the cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

from captioning.errors import SettingsError
from jobs.caption_settings import RuntimeSettings

#: Default batch sizes. On a CPU, decoding takes a tenth less time per image than in batches of 32.
CPU_BATCH, GPU_BATCH = 64, 128

_CPUS_PER_ACTOR = 0.5
_CPUS_PER_DECODE = 0.25
#: Candidate CPU requests of captioners and decoding tasks for very unequal nodes: the first that suit are taken.
_LARGER_ACTOR_REQUESTS = tuple(hundredths / 100 for hundredths in range(51, 96))
_SMALLER_DECODE_REQUESTS = (0.25, 0.2, 0.1, 0.05, 0.02)


@dataclass(frozen=True)
class Node:
    """The resources of one machine of the cluster."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Pools:
    """A plan: the captioner pool and the decoding tasks."""

    actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    #: PyTorch threads per captioner.
    threads: int
    decode_tasks: int
    cpus_per_decode: float
    device: str
    batch_size: int

    def __str__(self) -> str:
        where = "on the CPU" if self.device == "cpu" else f"with {self.gpus_per_actor:g} GPU each"
        return f"{self.actors} captioner{'s' if self.actors > 1 else ''} {where}"


def plan_pools(runtime: RuntimeSettings, nodes: Sequence[Node], *, shards: int) -> Pools:
    """The plan for `shards` shards on these nodes. Raises `SettingsError` for settings that cannot be satisfied."""
    cpus = sum(node.cpus for node in nodes)
    if cpus <= 0:
        raise SettingsError("The Ray cluster has no CPUs; it needs at least one node with a CPU.")
    share = _gpus_per_actor(runtime, nodes)
    if runtime.cuda_graphs and share == 0:
        raise SettingsError("runtime.cuda_graphs is for GPUs, but captioners would run on CPUs here: remove it.")
    cores = max(1, floor(cpus))
    slots = sum(_gpu_slots(node, share) for node in nodes) if share > 0 else cores
    if runtime.actors == "auto":
        actors = max(1, min(slots, shards))
    else:
        actors = runtime.actors
        if share > 0 and actors > slots:
            raise SettingsError(
                f"runtime.actors is {actors} and each needs {share:g} GPU, but the cluster has room for {slots}. "
                "Use fewer actors, or a smaller runtime.gpus_per_actor."
            )
    cpus_per_actor, cpus_per_decode = _cpu_requests(nodes, share, actors)
    device = "cuda" if share > 0 else "cpu"
    return Pools(
        actors=actors,
        cpus_per_actor=cpus_per_actor,
        gpus_per_actor=share,
        threads=1 if share > 0 else max(1, min(cores // actors, floor(max(node.cpus for node in nodes)))),
        decode_tasks=min(shards, cores) if runtime.decode_tasks == "auto" else runtime.decode_tasks,
        cpus_per_decode=cpus_per_decode,
        device=device,
        batch_size=(GPU_BATCH if share > 0 else CPU_BATCH) if runtime.batch_size == "auto" else runtime.batch_size,
    )


def _gpus_per_actor(runtime: RuntimeSettings, nodes: Sequence[Node]) -> float:
    gpus = sum(node.gpus for node in nodes if node.cpus > 0)
    if runtime.device == "cpu" or runtime.gpus_per_actor == 0:
        return 0.0
    largest = max((node.gpus for node in nodes if node.cpus > 0), default=0.0)
    share = (min(1.0, largest) or 1.0) if runtime.gpus_per_actor == "auto" else runtime.gpus_per_actor
    wanted = runtime.device == "cuda" or runtime.gpus_per_actor != "auto"
    if not wanted and gpus == 0:
        return 0.0
    if not any(_gpu_slots(node, share) for node in nodes):
        raise SettingsError(
            f"Each captioner needs {share:g} GPU, but Ray sees {gpus:g} GPUs here and no node has enough. "
            "Remove runtime.device and runtime.gpus_per_actor to use what is available."
        )
    return share


def _gpu_slots(node: Node, share: float) -> int:
    """The captioners on GPUs that fit on a node. A fraction never spans two GPUs; a node without CPUs runs none."""
    if node.cpus <= 0:
        return 0
    if share >= 1:
        return floor(node.gpus / share + 1e-9)
    return floor(node.gpus) * floor(1 / share + 1e-9) + floor(node.gpus % 1 / share + 1e-9)


def _cpu_requests(nodes: Sequence[Node], share: float, actors: int) -> tuple[float, float]:
    """The CPUs that a captioner requests, and those of a decoding task."""
    nodes = [node for node in nodes if node.cpus > 0]
    if share > 0:
        # Half of the CPUs of every node with GPUs stay free, however many captioners run on it.
        node_slots = [(node.cpus, min(actors, _gpu_slots(node, share))) for node in nodes]
        captioner = min(_CPUS_PER_ACTOR, *(cpus / 2 / count for cpus, count in node_slots if count))
    else:
        # Together they request half of the CPUs that remain after the loss of the largest node. So there is always a
        # node on which they request at most half, wherever they are placed.
        total = sum(node.cpus for node in nodes)
        spare = total - max(node.cpus for node in nodes) if len(nodes) > 1 else total
        captioner = _largest_fitting(nodes, min(_CPUS_PER_ACTOR, spare / 2 / actors), actors)
        if not _is_balanced(nodes, captioner, actors):
            found = _cpu_requests_of_unequal(nodes, actors)
            if found is not None:
                return found
    captioner = _round_down(captioner)
    # The smallest node must have room for a decoding task beside its captioners.
    decode = _round_down(min(_CPUS_PER_DECODE, min(node.cpus for node in nodes) / 4))
    return captioner, decode if decode != captioner else _round_down(decode * 0.8)


def _largest_fitting(nodes: Sequence[Node], cpus: float, actors: int) -> float:
    """The largest request, at most `cpus`, with which all captioners can be placed."""

    def fits(each: float) -> bool:
        return sum(floor(node.cpus / each + 1e-9) for node in nodes) >= actors

    if fits(cpus):
        return cpus
    parts = {size / count for size in {node.cpus for node in nodes} for count in range(1, actors + 1)}
    return next(part for part in sorted(parts, reverse=True) if part < cpus and fits(part))


def _is_balanced(nodes: Sequence[Node], cpus: float, actors: int) -> bool:
    """Whether no node gets more than two captioners per core: Ray gives each node the same number while they fit."""
    each = ceil(actors / len(nodes))
    return all(min(each, floor(node.cpus / cpus + 1e-9)) <= 2 * max(1, node.cpus) for node in nodes)


def _cpu_requests_of_unequal(nodes: Sequence[Node], actors: int) -> tuple[float, float] | None:
    """Requests with which each node gets at most two captioners per core, and two nodes have room for decoding.

    All captioners must be placed as well; None if no requests satisfy this.
    """
    for captioner in _LARGER_ACTOR_REQUESTS:
        most = [min(actors, floor(node.cpus / captioner + 1e-9)) for node in nodes]
        left = sorted(node.cpus - count * captioner for node, count in zip(nodes, most, strict=True))
        for decode in _SMALLER_DECODE_REQUESTS:
            if sum(most) >= actors and left[-2] >= decode:
                return captioner, decode
    return None


def _round_down(cpus: float) -> float:
    """Round down to ten-thousandths of a CPU, Ray's unit, but not to zero."""
    return max(0.0001, floor(cpus * 10_000) / 10_000)
