"""Plans that can run: on one CPU, on many, on GPUs, and after a node is lost."""

import pytest

from captioning.errors import SettingsError
from jobs.caption_settings import RuntimeSettings
from jobs.pools import Node, Pools, plan_pools

AUTO = RuntimeSettings()


def requested(pools: Pools) -> float:
    return pools.actors * pools.cpus_per_actor


@pytest.mark.parametrize("cpus", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("actors", ["auto", 1, 4, 40])
def test_captioners_leave_half_of_the_cpus_and_nothing_fuses(cpus, actors) -> None:
    pools = plan_pools(RuntimeSettings(actors=actors), [Node(cpus)], shards=1000)
    assert requested(pools) <= cpus / 2
    assert requested(pools) + pools.cpus_per_decode <= cpus
    assert pools.cpus_per_decode != pools.cpus_per_actor
    assert pools.decode_tasks >= 1
    assert pools.threads >= 1


def test_two_cores_get_two_captioners_of_one_thread() -> None:
    pools = plan_pools(AUTO, [Node(2)], shards=50)
    assert (pools.actors, pools.cpus_per_actor, pools.threads, pools.device) == (2, 0.5, 1, "cpu")


def test_no_more_captioners_than_shards_and_the_threads_fill_the_cores() -> None:
    pools = plan_pools(AUTO, [Node(16)], shards=3)
    assert pools.actors == 3
    assert pools.threads == 5


@pytest.mark.parametrize("nodes", [[1, 1], [2, 2, 2], [16, 2], [4, 4, 1]])
def test_after_the_loss_of_any_node_decoding_still_fits(nodes) -> None:
    pools = plan_pools(AUTO, [Node(cpus) for cpus in nodes], shards=1000)
    for lost in range(len(nodes)):
        left = [cpus for i, cpus in enumerate(nodes) if i != lost]
        assert requested(pools) + pools.cpus_per_decode <= sum(left)


def test_each_gpu_gets_a_captioner() -> None:
    pools = plan_pools(AUTO, [Node(16, 4), Node(16, 4), Node(8)], shards=1000)
    assert (pools.actors, pools.gpus_per_actor, pools.device) == (8, 1, "cuda")


def test_a_share_of_a_gpu_never_spans_two() -> None:
    pools = plan_pools(RuntimeSettings(gpus_per_actor=0.4), [Node(16, 2)], shards=1000)
    assert pools.actors == 4


def test_gpus_are_left_alone_when_asked() -> None:
    assert plan_pools(RuntimeSettings(device="cpu"), [Node(4, 1)], shards=9).device == "cpu"
    assert plan_pools(RuntimeSettings(gpus_per_actor=0), [Node(4, 1)], shards=9).device == "cpu"


@pytest.mark.parametrize(
    ("runtime", "nodes", "says"),
    [
        (RuntimeSettings(device="cuda"), [Node(4)], "Ray sees 0 GPUs"),
        (RuntimeSettings(gpus_per_actor=2), [Node(4, 1)], "each captioner is to take 2 GPU"),
        (RuntimeSettings(actors=3), [Node(4, 2)], "room for 2"),
        (AUTO, [Node(0, 1)], "no CPUs"),
    ],
)
def test_what_cannot_run_is_refused(runtime, nodes, says) -> None:
    with pytest.raises(SettingsError, match=f"(?i){says}"):
        plan_pools(runtime, nodes, shards=10)
