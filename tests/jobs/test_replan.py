"""Restarting the pools on a grown cluster: only if it is worthwhile, and not while the cluster is still growing."""

import dataclasses

from jobs.caption_settings import RuntimeSettings
from jobs.runners.pools import Node, Pools, plan_pools
from jobs.runners.replan import Replan


def pools(actors: int) -> Pools:
    return dataclasses.replace(plan_pools(RuntimeSettings(), [Node(2)], shards=100), actors=actors)


class Cluster:
    """Room for so many captioners, and a clock; a shard a second and captioner, after `start` seconds of loading."""

    def __init__(self, room: int, start: float = 30.0) -> None:
        self.room, self.now, self.left = room, 0.0, 1000
        self.replan = Replan(lambda left: pools(min(self.room, left)), pools(room), self.left, lambda: self.now)
        self.now += start

    def work(self, shards: int) -> Pools | None:
        """So many shards with two captioners; the plan to start over with, if there comes one."""
        for _ in range(shards):
            self.now += 0.5
            self.left -= 1
            better = self.replan.after(self.left)
            if better is not None:
                return better
        return None


def test_no_restart_if_the_cluster_does_not_grow() -> None:
    cluster = Cluster(2)
    assert cluster.work(300) is None
    cluster.room = 1
    assert cluster.work(300) is None


def test_a_grown_cluster_is_used_once_it_is_stable() -> None:
    cluster = Cluster(2)
    assert cluster.work(100) is None
    cluster.room = 4
    begun = cluster.now
    better = cluster.work(200)
    assert better is not None
    assert better.actors == 4
    assert 20 <= cluster.now - begun <= 40


def test_the_wait_for_a_growing_cluster_is_limited() -> None:
    cluster = Cluster(2)
    begun = cluster.now
    better = None
    while better is None and cluster.left > 100:
        cluster.room += 1
        better = cluster.work(24)  # seconds of growth between two nodes: fewer than it must be steady
    assert better is not None
    assert 300 <= cluster.now - begun <= 340


def test_little_left_is_not_worth_loading_every_captioner_again() -> None:
    cluster = Cluster(2, start=200.0)
    assert cluster.work(600) is None
    cluster.room = 4  # 400 shards are left, 200 s: the half of it is less than twice the 200 s of a start
    assert cluster.work(300) is None
