"""The captioners that a run requests from an autoscaling cluster."""

import pytest

from jobs.caption_settings import RuntimeSettings
from jobs.runners.autoscaling import CapacityRequests
from jobs.runners.pools import Node, plan_pools

POOLS = plan_pools(RuntimeSettings(), [Node(8, 2)], shards=1000)


class Tasks:
    """Placeholder tasks, some of which are scheduled."""

    def __init__(self) -> None:
        self.waiting = 0

    def add(self, count: int) -> None:
        self.waiting += count

    def pending(self) -> int:
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
def test_as_many_are_requested_as_the_work_is_worth(most: int | None, seconds: float, asked: int) -> None:
    tasks = Tasks()
    assert CapacityRequests(POOLS, most, tasks, Clock()).update(seconds) == tasks.waiting == asked


def test_nothing_is_requested_twice_and_scheduled_tasks_count() -> None:
    tasks = Tasks()
    requests = CapacityRequests(POOLS, 8, tasks, Clock())
    assert requests.update(1300) == 2
    assert requests.update(1300) == 0
    tasks.waiting = 1  # one machine is there
    assert requests.update(1300) == 0
    assert requests.update(2000) == 2
    assert tasks.waiting == 3


def test_requests_that_are_not_worth_it_any_more_are_cancelled() -> None:
    tasks = Tasks()
    requests = CapacityRequests(POOLS, 8, tasks, Clock())
    requests.update(36_000)
    assert requests.update(30) == tasks.waiting == 0
    assert requests.update(36_000) == 6, "a store that was slow for a while is fast again"


def test_captioners_on_cpus_request_nothing() -> None:
    tasks = Tasks()
    assert CapacityRequests(plan_pools(RuntimeSettings(), [Node(8)], shards=9), 64, tasks, Clock()).update(36_000) == 0


def test_updates_have_a_minimum_interval() -> None:
    tasks = Tasks()
    requests = CapacityRequests(POOLS, 8, tasks, lambda: 5.0)
    requests.update(1300)
    assert requests.update(36_000) == 0
