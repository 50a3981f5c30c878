"""The reports of a run that makes no progress."""

from jobs.caption_settings import RuntimeSettings
from jobs.runners.pools import Node, plan_pools
from jobs.runners.stall import NodeLoad, StallWatch, explain

POOLS = plan_pools(RuntimeSettings(), [Node(8, 2), Node(8)], shards=100)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watch(said: list[str], clock: Clock) -> StallWatch:
    return StallWatch(lambda: "Why.", said.append, clock=clock)


def test_nothing_is_reported_while_a_run_makes_progress() -> None:
    said: list[str] = []
    clock = Clock()
    stall = watch(said, clock)
    for _ in range(50):
        clock.now += 20
        stall.look()
        stall.progress()
    assert said == []


def test_a_stall_is_reported_after_a_minute_and_repeatedly() -> None:
    said: list[str] = []
    clock = Clock()
    stall = watch(said, clock)
    for _ in range(60):
        clock.now += 10
        stall.look()
    assert said == ["No shard has finished for 60 s. Why.", "No shard has finished for 360 s. Why."]


def test_a_stall_is_reported_later_if_shards_take_long() -> None:
    said: list[str] = []
    clock = Clock()
    stall = watch(said, clock)
    for _ in range(3):
        clock.now += 50
        stall.progress()
    clock.now += 240
    stall.look()
    assert said == []
    clock.now += 20
    stall.look()
    assert len(said) == 1


def test_the_thread_checks_by_itself_and_ends() -> None:
    said: list[str] = []
    with StallWatch(lambda: "Why.", said.append, first=0.02) as stall:
        for _ in range(500):
            if said:
                break
            stall._end.wait(0.02)
    assert said
    assert said[0].endswith("Why.")
    assert not stall._thread.is_alive()


def test_requested_and_free_resources() -> None:
    text = explain(POOLS, [NodeLoad("10.0.0.1", 8, 2, 3, 1), NodeLoad("10.0.0.2", 8, 0, 7.5, 0)])
    assert "2 captioners request 0.5 CPU and 1 GPU each, a decoding task 0.25 CPU." in text
    assert "10.0.0.1 3 of 8 CPU and 1 of 2 GPU; 10.0.0.2 7.5 of 8 CPU." in text
    assert "Resources are free" in text


def test_the_diagnosis() -> None:
    assert "No node is large enough for a decoding task" in explain(POOLS, [])
    assert "No node is large enough for a captioner" in explain(POOLS, [NodeLoad("a", 8, 0, 8, 0)])
    assert "No captioner has been placed" in explain(POOLS, [NodeLoad("a", 8, 2, 0, 2)])
    assert "All CPUs are in use" in explain(POOLS, [NodeLoad("a", 8, 2, 0, 0)])


def test_many_nodes_are_not_all_named() -> None:
    text = explain(POOLS, [NodeLoad(f"node-{n}", 8, 1, n, 1) for n in range(64)])
    assert "node-63 63 of 8 CPU" in text
    assert "and 56 more nodes" in text
