"""How many captioner processes and decoding tasks run, and what each asks of the cluster.

Knows the nodes' CPUs and GPUs and the settings, and nothing of Ray: it plans, others start.

Three rules make a plan that cannot hang. The captioners together ask for at most half of the
CPUs, so that decoding always finds some; on several nodes that holds even when the largest is
lost. Decoding asks for another amount than a captioner does, so that Ray Data does not fuse the
two into one. What is asked for is only bookkeeping: the cores are shared by the operating system.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from captioning.errors import SettingsError
from jobs.caption_settings import RuntimeSettings

_MOST_CPUS_AN_ACTOR = 0.5
_CPUS_A_DECODE = 0.25


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
    cores = max(1, floor(cpus))
    room = sum(_places(node.gpus, share) for node in nodes) if share > 0 else cores
    if runtime.actors == "auto":
        actors = max(1, min(room, shards))
    else:
        actors = runtime.actors
        if share > 0 and actors > room:
            raise SettingsError(
                f"runtime.actors is {actors} and each takes {share:g} GPU, but the cluster has room for {room}. "
                "Ask for fewer actors, or a smaller runtime.gpus_per_actor."
            )
    spare = cpus - max(node.cpus for node in nodes) if len(nodes) > 1 else cpus
    cpus_per_actor = _round_down(min(_MOST_CPUS_AN_ACTOR, spare / 2 / actors))
    # The smallest node must be able to run a decoding task beside its captioners.
    cpus_per_decode = _round_down(min(_CPUS_A_DECODE, min(node.cpus for node in nodes if node.cpus > 0) / 4))
    if cpus_per_decode == cpus_per_actor:
        cpus_per_decode = _round_down(cpus_per_decode * 0.8)
    device = "cuda" if share > 0 else "cpu"
    return Pools(
        actors=actors,
        cpus_per_actor=cpus_per_actor,
        gpus_per_actor=share,
        threads=1 if share > 0 else max(1, min(cores // actors, floor(max(node.cpus for node in nodes)))),
        decode_tasks=min(shards, cores) if runtime.decode_tasks == "auto" else runtime.decode_tasks,
        cpus_per_decode=cpus_per_decode,
        device=device,
        batch_size=(128 if share > 0 else 32) if runtime.batch_size == "auto" else runtime.batch_size,
    )


def _gpu_share(runtime: RuntimeSettings, nodes: Sequence[Node]) -> float:
    gpus = sum(node.gpus for node in nodes)
    if runtime.device == "cpu" or runtime.gpus_per_actor == 0:
        return 0.0
    share = 1.0 if runtime.gpus_per_actor == "auto" else runtime.gpus_per_actor
    wanted = runtime.device == "cuda" or runtime.gpus_per_actor != "auto"
    if not wanted and gpus == 0:
        return 0.0
    if not any(_places(node.gpus, share) for node in nodes):
        raise SettingsError(
            f"Each captioner is to take {share:g} GPU, but Ray sees {gpus:g} GPUs here and none of the nodes has "
            "enough. Leave runtime.device and runtime.gpus_per_actor out to caption on CPUs."
        )
    return share


def _places(gpus: float, share: float) -> int:
    """Captioners that fit on a node: a share below one GPU never spans two."""
    return floor(gpus / share) if share >= 1 else floor(gpus) * floor(1 / share + 1e-9)


def _round_down(cpus: float) -> float:
    """Ray counts CPUs in ten-thousandths; below that a request would be nothing."""
    return max(0.0001, floor(cpus * 10_000) / 10_000)
