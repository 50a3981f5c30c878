"""Plans of pools: on one CPU, on many, on GPUs, and after the loss of a node."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.errors import SettingsError
from jobs.caption_settings import RuntimeSettings
from jobs.runners.pools import Node, Pools, plan_pools

AUTO = RuntimeSettings()


def requested(pools: Pools) -> float:
    return pools.actors * pools.cpus_per_actor


@pytest.mark.parametrize("cpus", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("actors", ["auto", 1, 4, 40])
def test_captioners_leave_half_of_the_cpus_and_operators_do_not_fuse(cpus, actors) -> None:
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


CLUSTERS: dict[str, list[Node]] = {
    "one core": [Node(1)],
    "a container with half a core": [Node(0.5)],
    "a laptop": [Node(8)],
    "a workstation with a GPU": [Node(16, 1)],
    "a workstation with two GPUs": [Node(24, 2)],
    "a box of eight GPUs": [Node(96, 8)],
    "a box of eight GPUs and few cores": [Node(4, 8)],
    "a box of eight GPUs and one core": [Node(1, 8)],
    "two of one core": [Node(1), Node(1)],
    "two of half a core": [Node(0.5), Node(0.5)],
    "two of two cores": [Node(2), Node(2)],
    "three of two cores": [Node(2)] * 3,
    "five of three cores": [Node(3)] * 5,
    "ten of sixteen": [Node(16)] * 10,
    "a hundred of four": [Node(4)] * 100,
    "a large and a small one": [Node(64), Node(2)],
    "a large and two tiny ones": [Node(96), Node(1), Node(1)],
    "two large and a small one": [Node(64), Node(64), Node(2)],
    "four, four and one": [Node(4), Node(4), Node(1)],
    "small ones of all sizes": [Node(cpus) for cpus in range(1, 12)],
    "a head without CPUs": [Node(0), Node(8), Node(8)],
    "a head of half a core": [Node(0.5), Node(8), Node(8)],
    "a head without CPUs, and GPUs": [Node(0), Node(8, 1), Node(8, 1)],
    "a head, and a GPU": [Node(4), Node(8, 1)],
    "GPUs without a CPU beside some that have": [Node(0, 8), Node(64), Node(8, 1)],
    "GPUs with a tenth of a CPU": [Node(0.1, 8), Node(64), Node(64)],
    "GPUs with two CPUs, and decoders": [Node(2, 8), Node(64), Node(64)],
    "GPUs of two kinds of machines": [Node(16, 1)] * 4 + [Node(96, 8)] * 2,
    "GPUs and many decoders": [Node(32, 4)] * 2 + [Node(64)] * 8,
    "spot GPUs": [Node(4, 1)] * 20 + [Node(2)],
    "eight of eight GPUs": [Node(96, 8)] * 8,
    "64 of eight GPUs": [Node(96, 8)] * 64,
    "64 of eight GPUs and eight cores": [Node(8, 8)] * 64,
    "a GPU each, one without": [Node(6, 1), Node(6, 1), Node(6)],
    "GPUs in quarters by the system": [Node(8, 0.5), Node(8, 0.5)],
}
SETTINGS = {
    "auto": AUTO,
    "CPUs": RuntimeSettings(device="cpu"),
    "half a GPU": RuntimeSettings(gpus_per_actor=0.5),
    "a third of a GPU": RuntimeSettings(gpus_per_actor=0.33),
    "two GPUs": RuntimeSettings(gpus_per_actor=2),
    "three actors": RuntimeSettings(actors=3),
    "a single actor": RuntimeSettings(actors=1),
}


def most_captioners(node: Node, pools: Pools) -> int:
    """How many of the pool's captioners a node has room for, one by one as Ray places them."""
    cpus, devices = node.cpus, [1.0] * int(node.gpus) + [node.gpus % 1] * bool(node.gpus % 1)
    count = 0
    while count < pools.actors and cpus >= pools.cpus_per_actor - 1e-9:
        need = pools.gpus_per_actor
        if need >= 1:
            whole = [at for at, free in enumerate(devices) if free >= 1][: int(need)]
            if len(whole) < need:
                break
            for at in whole:
                devices[at] = 0.0
        elif need > 0:
            at = next((at for at, free in enumerate(devices) if free >= need - 1e-9), None)
            if at is None:
                break
            devices[at] -= need
        cpus -= pools.cpus_per_actor
        count += 1
    return count


def can_always_decode(nodes: list[Node], pools: Pools) -> bool:
    """Whether a decoding task finds a place though an enemy places the captioners."""
    needed = 0
    for node in nodes:
        room = most_captioners(node, pools)
        filling = next(
            (n for n in range(room + 1) if node.cpus - n * pools.cpus_per_actor < pools.cpus_per_decode - 1e-9), None
        )
        if filling is None:
            return True
        needed += filling
    return needed > pools.actors


def total_cores(nodes: list[Node]) -> int:
    return int(sum(node.cpus for node in nodes))


def decoding_at_once(nodes: list[Node], pools: Pools) -> int:
    """Decoding tasks that run beside all captioners, those being spread as Ray spreads them: one node after another."""
    free = {at: node.cpus for at, node in enumerate(nodes)}
    places = {at: most_captioners(node, pools) for at, node in enumerate(nodes)}
    left = pools.actors
    while left:
        for at in free:
            if left and places[at]:
                free[at] -= pools.cpus_per_actor
                places[at] -= 1
                left -= 1
    return min(pools.decode_tasks, sum(int(cpus / pools.cpus_per_decode + 1e-6) for cpus in free.values()))


def check(pools: Pools, nodes: list[Node], runtime: RuntimeSettings) -> None:
    assert sum(most_captioners(node, pools) for node in nodes) >= pools.actors, "captioners for whom there is no place"
    assert pools.cpus_per_decode > 0
    assert pools.cpus_per_actor > 0
    assert pools.decode_tasks >= 1
    assert pools.threads >= 1
    assert pools.cpus_per_decode != pools.cpus_per_actor, "Ray Data would fuse the two"
    assert decoding_at_once(nodes, pools) >= min(pools.decode_tasks, total_cores(nodes)) / 2, "decoding starves"
    assert can_always_decode(nodes, pools)
    for lost in range(len(nodes)) if len(nodes) > 1 else ():
        left = nodes[:lost] + nodes[lost + 1 :]
        if any(node.cpus > 0 for node in left):
            assert can_always_decode(left, pools), f"nothing decodes once node {lost} is lost"
        captions = [most_captioners(node, pools) > 0 for node in nodes]
        if sum(captions) > 1 or not captions[lost]:
            assert any(most_captioners(node, pools) for node in left), f"nothing captions once node {lost} is lost"


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_plan_can_run_and_go_on_after_the_loss_of_any_node(cluster, settings) -> None:
    nodes, runtime = CLUSTERS[cluster], SETTINGS[settings]
    for shards in (1, 7, 100_000):
        try:
            pools = plan_pools(runtime, nodes, shards=shards)
        except SettingsError:
            # Only what the cluster does not have may be refused, and that is GPUs.
            assert runtime.gpus_per_actor != "auto" or runtime.actors == 3, "no GPUs were asked for"
            continue
        check(pools, nodes, runtime)


@given(
    nodes=st.lists(
        st.builds(
            Node, st.sampled_from([0, 0.1, 0.5, 1, 2, 3, 4, 7, 8, 16, 48, 96]), st.sampled_from([0, 0, 0, 1, 4, 8])
        ),
        min_size=1,
        max_size=8,
    ),
    runtime=st.sampled_from(list(SETTINGS.values())),
    shards=st.integers(1, 1000),
)
@settings(deadline=None, max_examples=300)
def test_any_plan_can_run_after_the_loss_of_any_node(nodes, runtime, shards) -> None:
    try:
        pools = plan_pools(runtime, nodes, shards=shards)
    except SettingsError:
        if any(node.cpus > 0 for node in nodes):
            assert runtime.gpus_per_actor != "auto" or runtime.actors == 3, "no GPUs were asked for"
        return
    check(pools, nodes, runtime)


def test_a_captioner_asks_for_no_more_than_a_node_has() -> None:
    nodes = [Node(0.1)] * 4
    check(plan_pools(RuntimeSettings(device="cpu"), nodes, shards=1), nodes, RuntimeSettings(device="cpu"))


def test_captioners_use_the_cluster_and_do_not_crowd_its_small_nodes() -> None:
    for name, nodes in CLUSTERS.items():
        pools = plan_pools(RuntimeSettings(device="cpu"), nodes, shards=100_000)
        assert pools.actors == max(1, int(sum(node.cpus for node in nodes)))
        with_cpus = [node for node in nodes if node.cpus > 0]
        each = -(-pools.actors // len(with_cpus))
        for node in with_cpus:
            assert min(each, most_captioners(node, pools)) <= 2 * max(1, node.cpus), name


def test_each_gpu_gets_a_captioner() -> None:
    pools = plan_pools(AUTO, [Node(16, 4), Node(16, 4), Node(8)], shards=1000)
    assert (pools.actors, pools.gpus_per_actor, pools.device) == (8, 1, "cuda")


def test_a_fraction_of_a_gpu_never_spans_two() -> None:
    pools = plan_pools(RuntimeSettings(gpus_per_actor=0.4), [Node(16, 2)], shards=1000)
    assert pools.actors == 4


def test_gpus_are_left_alone_when_asked() -> None:
    assert plan_pools(RuntimeSettings(device="cpu"), [Node(4, 1)], shards=9).device == "cpu"
    assert plan_pools(RuntimeSettings(gpus_per_actor=0), [Node(4, 1)], shards=9).device == "cpu"


@pytest.mark.parametrize(
    ("runtime", "nodes", "says"),
    [
        (RuntimeSettings(device="cuda"), [Node(4)], "Ray sees 0 GPUs"),
        (RuntimeSettings(gpus_per_actor=2), [Node(4, 1)], "each captioner needs 2 GPU"),
        (RuntimeSettings(actors=3), [Node(4, 2)], "room for 2"),
        (RuntimeSettings(cuda_graphs=True), [Node(4)], "cuda_graphs is for GPUs"),
        (AUTO, [Node(0, 1)], "no CPUs"),
    ],
)
def test_impossible_settings_are_refused(runtime, nodes, says) -> None:
    with pytest.raises(SettingsError, match=f"(?i){says}"):
        plan_pools(runtime, nodes, shards=10)
