"""Nodes that join and leave during a run."""

from jobs.runners.node_watch import NodeWatch


def test_changes_are_reported_once() -> None:
    nodes = {"a": "10.0.0.1", "b": "10.0.0.2"}
    heard: list[tuple[str, str]] = []
    with NodeWatch(lambda: nodes, lambda event, name: heard.append((event, name)), every=1000) as watch:
        watch.look()
        assert heard == []
        nodes = {"a": "10.0.0.1", "c": "10.0.0.2"}  # a machine that comes again is another node of the same address
        watch.look()
        watch.look()
    assert heard == [("node_lost", "10.0.0.2"), ("node_joined", "10.0.0.2")]


def test_the_thread_survives_an_unreachable_head_node() -> None:
    answers = iter([{"a": "one"}, None, {"a": "one", "b": "two"}])
    heard: list[str] = []

    def nodes() -> dict[str, str]:
        answer = next(answers, {"a": "one", "b": "two"})
        if answer is None:
            raise ConnectionError
        return answer

    with NodeWatch(nodes, lambda event, name: heard.append(f"{event} {name}"), every=0.01) as watch:
        for _ in range(500):
            if heard:
                break
            watch._end.wait(0.01)
    assert heard == ["node_joined two"]
    assert not watch._thread.is_alive()
