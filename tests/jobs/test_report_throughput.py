import pytest

from jobs.reporting.throughput import rate_over_time


def at(seconds: float, images: int | None = None, event: str = "shard") -> dict[str, object]:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    fields = {} if images is None else {"images": images}
    return {"time": f"2026-01-02T{hours:02d}:{minutes:02d}:{rest:06.3f}+00:00", "event": event, **fields}


def test_a_steady_run_has_a_steady_rate():
    rate = rate_over_time([at(0, event="start"), *(at(s, 20) for s in range(2, 42, 2))])
    assert rate.mean == pytest.approx(10)
    assert rate.points[-1].seconds == pytest.approx(40)
    assert all(point.images_per_second == pytest.approx(10) for point in rate.points)
    assert rate.pauses == 0


def test_shards_that_end_together_do_not_divide_by_nothing():
    rate = rate_over_time([at(0, event="start"), at(4, 20), at(4, 20), at(8, 20), at(8, 20)])
    assert rate.mean == pytest.approx(10)


def test_time_between_two_starts_is_left_out():
    first = [at(0, event="start"), *(at(s, 10) for s in range(1, 11))]
    second = [at(3600, event="start"), *(at(3600 + s, 10) for s in range(1, 11))]
    rate = rate_over_time([*first, *second])
    assert rate.mean == pytest.approx(10)
    assert rate.points[-1].seconds == pytest.approx(20)
    assert rate.pauses == 1


@pytest.mark.parametrize("event", ["retry", "refresh"])
def test_time_before_a_retry_is_left_out(event):
    first = [at(0, event="start"), *(at(s, 10) for s in range(1, 11))]
    rate = rate_over_time([*first, at(3600, event=event), at(3602, 20)])
    assert rate.mean == pytest.approx(10)


def test_only_shards_and_starts_count():
    events = [at(0, event="indexed"), at(30, event="start"), at(34, 40), at(38, 40), at(90, event="finished")]
    rate = rate_over_time(events)
    assert rate.mean == pytest.approx(10)
    assert rate.pauses == 0


def test_a_long_silence_is_a_pause():
    rate = rate_over_time([*(at(s, 10) for s in range(0, 10)), *(at(5000 + s, 10) for s in range(0, 10))])
    assert rate.pauses == 1
    assert rate.mean == pytest.approx(10)


def test_many_events_become_few_points():
    assert len(rate_over_time([at(s, 1) for s in range(1000)]).points) <= 60


@pytest.mark.parametrize(
    "events", [[], [at(0, event="start")], [{"time": 3}, {"event": "shard"}, {"time": "x", "images": 4}]]
)
def test_nothing_to_tell(events):
    rate = rate_over_time(events)
    assert rate.points == ()
    assert rate.mean is None
