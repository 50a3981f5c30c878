"""Messages while training workers cannot be placed, and when to give up."""

import pytest

from captioning.errors import UnfinishedError
from jobs.runners.stall import NodeLoad
from jobs.training.capacity import CapacityWatch, has_pending_workers
from jobs.training.placement import Placement

#: Two workers of 0.9 CPU.
TWO = Placement(min_workers=2, max_workers=2, cpus=0.9, gpu=False, strategy="SPREAD")


class Cluster:
    """A clock, nodes, and workers that wait or do not."""

    def __init__(self) -> None:
        self.now = 0.0
        self.nodes = [NodeLoad("head", cpus=2, gpus=0, free_cpus=1.5, free_gpus=0)]
        self.waits = False
        self.said: list[str] = []
        self.watch = CapacityWatch(TWO, lambda: self.nodes, lambda: self.waits, self.said.append, lambda: self.now)

    def pass_time(self, seconds: float) -> None:
        """In steps of half a second, as the driver polls."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.5
            self.watch.poll()


def test_nothing_is_said_while_all_is_well() -> None:
    cluster = Cluster()
    cluster.waits = True  # being started
    cluster.pass_time(25)
    cluster.waits = False
    cluster.pass_time(5000)
    assert cluster.said == []


def test_workers_that_wait_for_others_are_told_with_what_is_free() -> None:
    cluster = Cluster()
    cluster.waits = True
    cluster.pass_time(50)
    [said] = cluster.said
    assert "2 workers with 0.9 CPU each at once. Free: head 1.5 of 2 CPU." in said
    assert "smaller `min_workers`" in said
    cluster.pass_time(250)
    assert len(cluster.said) == 1
    cluster.pass_time(100)
    assert len(cluster.said) == 2
    cluster.pass_time(10_000)  # however long: others end some day
    cluster.waits = False
    cluster.pass_time(100)
    told = len(cluster.said)
    cluster.waits = True
    cluster.pass_time(50)
    assert len(cluster.said) == told + 1


def test_without_nodes_that_are_large_enough_it_ends_some_day() -> None:
    cluster = Cluster()
    cluster.nodes = [NodeLoad("small", cpus=1, gpus=0, free_cpus=1, free_gpus=0)]
    cluster.pass_time(1700)
    assert "needs 2 workers with 0.9 CPU each, and the cluster has room for 1" in cluster.said[0]
    cluster.nodes *= 2
    cluster.pass_time(40)
    cluster.nodes = cluster.nodes[:1]
    cluster.pass_time(1700)
    with pytest.raises(UnfinishedError, match=r"after waiting 30 minutes.*room for 1\..*min_workers.*last saved state"):
        cluster.pass_time(200)


@pytest.mark.usefixtures("ray_local")
def test_ray_tells_whether_workers_of_this_size_wait() -> None:
    import ray
    from ray.util import placement_group, remove_placement_group

    assert not has_pending_workers(TWO)
    other = placement_group([{"CPU": 1.5}])
    assert other.wait(30)
    asked = placement_group([{"CPU": 0.9}] * 2)
    try:
        assert not asked.wait(1)
        assert has_pending_workers(TWO)
        assert not has_pending_workers(Placement(min_workers=1, max_workers=1, cpus=1.5, gpu=False, strategy="SPREAD"))
        remove_placement_group(other)
        ray.get(asked.ready(), timeout=30)
        assert not has_pending_workers(TWO)
    finally:
        remove_placement_group(asked)
        remove_placement_group(other)
