"""The arithmetic of `plan`, on simulated times."""

import random
from dataclasses import replace

import pytest

from jobs.planning.forecast import (
    Completion,
    Resources,
    advise,
    cost,
    long_enough,
    sample_shard_size,
    stage_shares,
    steady_rate,
)


def made(
    shards: int, *, workers: int, startup: float, shard_seconds: float, size: int = 32, seed: int = 0
) -> list[Completion]:
    """Completions of `workers` captioners that each take about `shard_seconds` per shard."""
    draw = random.Random(0)
    free = [startup + shard_seconds * number / workers for number in range(workers)]
    ends = []
    for _ in range(shards):
        worker = min(range(workers), key=lambda at: free[at])
        free[worker] += shard_seconds * draw.uniform(0.9, 1.1)
        ends.append(free[worker])
    return [Completion(end, 32 * (number + 1)) for number, end in enumerate(sorted(ends))]


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
@pytest.mark.parametrize("drained", [True, False])
def test_rate_and_startup_are_separated(workers: int, drained: bool) -> None:
    completions = made(12 * workers, workers=workers, startup=20, shard_seconds=2.0)
    found = steady_rate(completions, workers, drained=drained)
    assert found.images_per_second == pytest.approx(16 * workers, rel=0.15)
    assert found.startup_seconds == pytest.approx(20, abs=2.5)
    assert not found.rough
    # A run of a hundred thousand images: the simulation and the forecast agree.
    whole = made(3200, workers=workers, startup=20, shard_seconds=2.0)[-1]
    assert found.seconds(whole.images) == pytest.approx(whole.seconds, rel=0.15)


def test_a_tiny_sample_gives_a_rough_rate() -> None:
    one = steady_rate([Completion(10, 20)], 1, drained=True)
    assert one.rough
    assert one.seconds(20) == pytest.approx(10)
    assert steady_rate(
        [Completion(10, 8), Completion(11, 16), Completion(12, 24)], 3, drained=True
    ).images_per_second == pytest.approx(8)


def test_nothing_takes_no_time() -> None:
    assert steady_rate([Completion(10, 20)], 1, drained=True).seconds(0) == 0


def test_a_sample_ends_when_it_is_long_enough() -> None:
    completions = made(200, workers=2, startup=10, shard_seconds=2.0)
    ended = next(number for number in range(1, 200) if long_enough(completions[:number], 2, 25))
    assert 25 <= completions[ended - 1].seconds - completions[1].seconds < 29
    assert not long_enough(completions[:5], 2, 0.1)


def test_cost_scales_with_nodes_and_price() -> None:
    rate = steady_rate(
        [Completion(10, 100), Completion(20, 1100), Completion(30, 2100), Completion(40, 3100)], 1, drained=False
    )
    assert rate.images_per_second == pytest.approx(100)
    price = cost(rate, 360_000, price_per_hour=2.0, nodes=3)
    assert price.archive == pytest.approx(6.0, rel=0.01)
    assert price.million == pytest.approx(1e6 / 100 / 3600 * 6)


def test_shares_add_up() -> None:
    assert stage_shares({"fetch": 1.0, "model": 3.0}) == {"fetch": 0.25, "model": 0.75}
    assert stage_shares({"fetch": 0.0}) == {"fetch": 0.0}


def test_shards_of_the_sample_are_enough_for_a_rate() -> None:
    assert sample_shard_size(512, 32, sample=16_384, workers=2) == 32
    assert sample_shard_size(512, 128, sample=16_384, workers=1) == 512
    assert sample_shard_size(512, 32, sample=64, workers=2) == 8
    assert sample_shard_size(8, 32, sample=10_000, workers=2) == 8
    assert sample_shard_size(32, 32, sample=1, workers=2) == 1


CPU = Resources(cores=2, gpus=0, nodes=1, actors=2, decode_tasks=2, batch_size=32)
GPU = Resources(cores=16, gpus=1, nodes=1, actors=1, decode_tasks=16, batch_size=128)


def test_a_faster_batch_size_is_advised_when_it_matters() -> None:
    rate = steady_rate([Completion(10, 100), Completion(20, 200), Completion(30, 300)], 1, drained=False)
    stages = {"fetch": 1.0, "decode": 10.0, "model": 90.0, "write": 1.0}
    faster = advise(CPU, stages, 1000, rate, {16: 10.0, 32: 11.0, 64: 14.0})
    assert faster.batch_size == 64
    assert "runtime.batch_size=64" in faster.lines[0]
    assert advise(CPU, stages, 1000, rate, {16: 10.0, 32: 11.0, 64: 11.3}).lines == ()


def test_a_waiting_gpu_is_reported() -> None:
    rate = steady_rate([Completion(10, 1000), Completion(11, 2000), Completion(12, 3000)], 1, drained=False)
    starved = {"fetch": 10.0, "decode": 150.0, "model": 4.0, "write": 1.0}
    [line] = advise(GPU, starved, 10_000, rate, {}).lines
    assert "about 40 CPU cores" in line
    busy = {"fetch": 1.0, "decode": 50.0, "model": 10.0, "write": 1.0}
    told = advise(GPU, busy, 10_000, rate, {})
    assert told.lines == ()
    assert told.decode_tasks == 7


def test_slow_storage_is_reported() -> None:
    rate = steady_rate([Completion(10, 100), Completion(20, 200), Completion(30, 300)], 1, drained=False)
    slow = advise(CPU, {"fetch": 100.0, "decode": 1.0, "model": 50.0}, 100, rate, {})
    assert slow.decode_tasks == 4
    # Without Ray there is no such setting.
    here = advise(replace(CPU, decode_tasks=None), {"fetch": 100.0, "decode": 1.0, "model": 50.0}, 100, rate, {})
    assert (here.decode_tasks, here.lines) == (None, ())
