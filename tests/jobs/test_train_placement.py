"""Planning where training workers run, without Ray."""

import dataclasses

import pytest

from captioning.errors import SettingsError
from captioning.training.settings import TrainSettings
from jobs.runners.pools import Node
from jobs.training.placement import place_workers


def settings(**chosen: object) -> TrainSettings:
    return dataclasses.replace(TrainSettings(), images_per_step=64, **chosen)


CLUSTERS = [
    [Node(1)],
    [Node(2)],
    [Node(8)],
    [Node(2), Node(2)],
    [Node(0), Node(1), Node(1)],
    [Node(1), Node(4), Node(16)],
    [Node(4)] * 8,
    [Node(64)] * 64,
]


@pytest.mark.parametrize("nodes", CLUSTERS, ids=str)
@pytest.mark.parametrize("workers", [1, 2, 4, 32])
@pytest.mark.parametrize("least", [None, 1])
def test_on_cpus_all_workers_fit_and_after_the_loss_of_any_node_enough(
    nodes: list[Node], workers: int, least: int | None
) -> None:
    placement = place_workers(settings(workers=workers, min_workers=least, threads_per_worker=4), nodes)
    assert (placement.max_workers, placement.min_workers, placement.gpu) == (workers, least or workers, False)
    assert 0 < placement.cpus <= 4
    assert placement.capacity(nodes) == workers
    with_cpus = [node for node in nodes if node.cpus]
    for lost in with_cpus if len(with_cpus) > 1 else []:
        left = with_cpus.copy()
        left.remove(lost)
        assert placement.capacity(left) >= placement.min_workers


def test_a_worker_has_the_cpus_of_its_threads_where_there_are_as_many() -> None:
    placement = place_workers(settings(workers=2, threads_per_worker=8), [Node(16), Node(16)])
    assert placement.cpus == 7.2  # both would fit on one of the two
    assert placement.strategy == "SPREAD"


def test_a_gpu_a_worker_where_there_are_as_many() -> None:
    nodes = [Node(0), Node(16, 4), Node(16, 4)]
    placement = place_workers(settings(workers=8, threads_per_worker=8), nodes)
    assert (placement.gpu, placement.cpus, placement.strategy) == (True, 3.6, "PACK")
    assert placement.capacity(nodes) == 8
    assert place_workers(settings(workers=16), nodes).gpu is False
    assert place_workers(settings(workers=16, min_workers=8), nodes).gpu is True
    with pytest.raises(SettingsError, match="16 worker.s. need one GPU each, and Ray has 8"):
        place_workers(settings(workers=16, gpu=True), nodes)
