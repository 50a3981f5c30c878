"""How many captioner processes and decoding tasks run, and what each asks of the cluster.

Knows the nodes' CPUs and GPUs and the settings, and nothing of Ray: it plans, others start.

A plan cannot hang, whatever node is lost. Wherever Ray puts the captioners, and however many of
them wait for a place, a node is left on which a decoding task fits. Decoding asks for another amount
than a captioner does, so that Ray Data does not fuse the two into one. What is asked for is only
bookkeeping: the cores are shared by the operating system.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

from captioning.errors import SettingsError
from jobs.caption_settings import RuntimeSettings

#: Images that go through the model together unless given: on a CPU words take a tenth less than in batches of 32.
CPU_BATCH, GPU_BATCH = 64, 128

_CPUS_AN_ACTOR = 0.5
_CPUS_A_DECODE = 0.25
#: What captioners and decoding ask for where nodes differ much: the first that suit.
_LARGER_SHARES = tuple(hundredths / 100 for hundredths in range(51, 96))
_SMALLER_DECODES = (0.25, 0.2, 0.1, 0.05, 0.02)


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Pools:
    """A plan: the captioner pool and the decoding tasks."""

    actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    #: Threads of each captioner's model.
    threads: int
    decode_tasks: int
    cpus_per_decode: float
    device: str
    batch_size: int

    def __str__(self) -> str:
        where = "on the CPU" if self.device == "cpu" else f"with {self.gpus_per_actor:g} GPU each"
        return f"{self.actors} captioner{'s' if self.actors > 1 else ''} {where}"


def plan_pools(runtime: RuntimeSettings, nodes: Sequence[Node], *, shards: int) -> Pools:
    """A plan for `shards` shards of work on these nodes. Raises `SettingsError` for what cannot run."""
    cpus = sum(node.cpus for node in nodes)
    if cpus <= 0:
        raise SettingsError("The Ray cluster has no CPUs at all; at least one node with a CPU is needed.")
    share = _gpu_share(runtime, nodes)
    if runtime.cuda_graphs and share == 0:
        raise SettingsError("runtime.cuda_graphs is for GPUs, and captioners would run on CPUs here: leave it out.")
    cores = max(1, floor(cpus))
    room = sum(_places(node, share) for node in nodes) if share > 0 else cores
    if runtime.actors == "auto":
        actors = max(1, min(room, shards))
    else:
        actors = runtime.actors
        if share > 0 and actors > room:
            raise SettingsError(
                f"runtime.actors is {actors} and each takes {share:g} GPU, but the cluster has room for {room}. "
                "Ask for fewer actors, or a smaller runtime.gpus_per_actor."
            )
    cpus_per_actor, cpus_per_decode = _requests(nodes, share, actors)
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


def _gpu_share(runtime: RuntimeSettings, nodes: Sequence[Node]) -> float:
    gpus = sum(node.gpus for node in nodes if node.cpus > 0)
    if runtime.device == "cpu" or runtime.gpus_per_actor == 0:
        return 0.0
    largest = max((node.gpus for node in nodes if node.cpus > 0), default=0.0)
    share = (min(1.0, largest) or 1.0) if runtime.gpus_per_actor == "auto" else runtime.gpus_per_actor
    wanted = runtime.device == "cuda" or runtime.gpus_per_actor != "auto"
    if not wanted and gpus == 0:
        return 0.0
    if not any(_places(node, share) for node in nodes):
        raise SettingsError(
            f"Each captioner is to take {share:g} GPU, but Ray sees {gpus:g} GPUs here and none of the nodes has "
            "enough. Leave runtime.device and runtime.gpus_per_actor out to caption on CPUs."
        )
    return share


def _places(node: Node, share: float) -> int:
    """Captioners on GPUs that fit on a node. A share below one GPU never spans two; without a CPU nothing runs."""
    if node.cpus <= 0:
        return 0
    if share >= 1:
        return floor(node.gpus / share + 1e-9)
    return floor(node.gpus) * floor(1 / share + 1e-9) + floor(node.gpus % 1 / share + 1e-9)


def _requests(nodes: Sequence[Node], share: float, actors: int) -> tuple[float, float]:
    """CPUs that a captioner, and that a decoding task asks for."""
    nodes = [node for node in nodes if node.cpus > 0]
    if share > 0:
        # Half of every node with GPUs is left, however many of its captioners run.
        places = [(node.cpus, min(actors, _places(node, share))) for node in nodes]
        captioner = min(_CPUS_AN_ACTOR, *(cpus / 2 / count for cpus, count in places if count))
    else:
        # All of them ask for half of what the loss of the largest node leaves. So there is always a node on which
        # they have half at most, wherever they are put.
        total = sum(node.cpus for node in nodes)
        spare = total - max(node.cpus for node in nodes) if len(nodes) > 1 else total
        captioner = _fitting(nodes, min(_CPUS_AN_ACTOR, spare / 2 / actors), actors)
        if not _is_fair(nodes, captioner, actors):
            found = _requests_of_unequal(nodes, actors)
            if found is not None:
                return found
    captioner = _round_down(captioner)
    # The smallest node must be able to run a decoding task beside its captioners.
    decode = _round_down(min(_CPUS_A_DECODE, min(node.cpus for node in nodes) / 4))
    return captioner, decode if decode != captioner else _round_down(decode * 0.8)


def _fitting(nodes: Sequence[Node], cpus: float, actors: int) -> float:
    """The most CPUs, `cpus` at most, that each of the captioners can have somewhere."""

    def fits(each: float) -> bool:
        return sum(floor(node.cpus / each + 1e-9) for node in nodes) >= actors

    if fits(cpus):
        return cpus
    parts = {size / count for size in {node.cpus for node in nodes} for count in range(1, actors + 1)}
    return next(part for part in sorted(parts, reverse=True) if part < cpus and fits(part))


def _is_fair(nodes: Sequence[Node], cpus: float, actors: int) -> bool:
    """Whether no node is given more than two captioners a core: Ray gives all nodes as many, while there is room."""
    each = ceil(actors / len(nodes))
    return all(min(each, floor(node.cpus / cpus + 1e-9)) <= 2 * max(1, node.cpus) for node in nodes)


def _requests_of_unequal(nodes: Sequence[Node], actors: int) -> tuple[float, float] | None:
    """Requests with which a node is given two captioners a core at most, and still has room for decoding.

    At least two nodes must keep that room, and all captioners find a place; None where no requests do this.
    """
    for captioner in _LARGER_SHARES:
        most = [min(actors, floor(node.cpus / captioner + 1e-9)) for node in nodes]
        left = sorted(node.cpus - count * captioner for node, count in zip(nodes, most, strict=True))
        for decode in _SMALLER_DECODES:
            if sum(most) >= actors and left[-2] >= decode:
                return captioner, decode
    return None


def _round_down(cpus: float) -> float:
    """Ray counts CPUs in ten-thousandths; below that a request would be nothing."""
    return max(0.0001, floor(cpus * 10_000) / 10_000)
