"""What an autoscaling cluster is asked for while a run goes on."""

import pytest

from jobs.caption_settings import RuntimeSettings
from jobs.runners.growth import Growth
from jobs.runners.pools import Node, plan_pools

POOLS = plan_pools(RuntimeSettings(), [Node(8, 2)], shards=1000)


class Tasks:
    """Tasks of which some have had their place."""

    def __init__(self) -> None:
        self.waiting = 0

    def add(self, count: int) -> None:
        self.waiting += count

    def left(self) -> int:
        return self.waiting

    def cancel(self) -> None:
        self.waiting = 0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 20
        return self.now


@pytest.mark.parametrize(
    ("most", "seconds", "asked"),
    [(8, 36_000, 6), (8, 1300, 2), (8, 500, 0), (2, 36_000, 0), (None, 36_000, 0)],
)
def test_as_many_are_asked_for_as_the_work_is_worth(most: int | None, seconds: float, asked: int) -> None:
    tasks = Tasks()
    assert Growth(POOLS, most, tasks, Clock()).look(seconds) == tasks.waiting == asked


def test_nothing_is_asked_for_twice_and_what_has_come_counts() -> None:
    tasks = Tasks()
    growth = Growth(POOLS, 8, tasks, Clock())
    assert growth.look(1300) == 2
    assert growth.look(1300) == 0
    tasks.waiting = 1  # one machine is there
    assert growth.look(1300) == 0
    assert growth.look(2000) == 2
    assert tasks.waiting == 3


def test_what_is_not_worth_it_any_more_is_let_go() -> None:
    tasks = Tasks()
    growth = Growth(POOLS, 8, tasks, Clock())
    growth.look(36_000)
    assert growth.look(30) == tasks.waiting == 0
    assert growth.look(36_000) == 6, "a store that was slow for a while is fast again"


def test_captioners_on_cpus_ask_for_nothing() -> None:
    tasks = Tasks()
    assert Growth(plan_pools(RuntimeSettings(), [Node(8)], shards=9), 64, tasks, Clock()).look(36_000) == 0


def test_one_looks_now_and_then() -> None:
    tasks = Tasks()
    growth = Growth(POOLS, 8, tasks, lambda: 5.0)
    growth.look(1300)
    assert growth.look(36_000) == 0
