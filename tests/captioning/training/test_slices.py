"""The slices of a step: the same work in the same micro-batches, however many workers there are."""

from pathlib import Path

import pytest

from captioning.config import read_settings
from captioning.data.shards import ShardSet
from captioning.errors import SettingsError
from captioning.storage import Location
from captioning.training.loop import TrainingRun
from captioning.training.parts import Parts
from captioning.training.settings import TrainSettings
from captioning.training.workers import Workers
from tests.captioning.training.runs import recipe
from tests.tiny import PREPROCESS, tiny_model, tiny_tokenizer, write_tiny_shards

Keys = dict[tuple[int, int], tuple[str, ...]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"train": 20, "val": 5})


def steps(shards: ShardSet, folder: Path, workers: Workers, start: int = 0) -> list[Keys]:
    """A worker's steps of an epoch: the keys of the images of each pass, by the position of the pass."""
    settings = recipe("workers=3", "images_per_step=9", "images_per_pass=2")
    parts = Parts(tiny_model(), tiny_tokenizer(), PREPROCESS)
    run = TrainingRun(settings, parts, shards, Location.parse(str(folder)), workers)
    assert run.total_steps == 3 * settings.epochs
    return [{batch.position: batch.keys for batch in passes} for passes in run.start_stage(None).epoch(1, start=start)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 2])
def test_fewer_workers_do_the_same(shards: ShardSet, tmp_path: Path, world: int, start: int) -> None:
    every = [steps(shards, tmp_path, Workers(rank, world), start) for rank in range(world)]
    together = [{at: keys for each in step for at, keys in each.items()} for step in zip(*every, strict=True)]
    expected = [steps(shards, tmp_path, Workers(rank, 3), start) for rank in range(3)]
    assert together == [{p: keys for each in step for p, keys in each.items()} for step in zip(*expected, strict=True)]
    assert len(together) == 3 - start
    if not start:
        seen = [key for step in together for keys in step.values() for key in keys]
        assert sorted(seen) == sorted(f"train{number:04d}" for number in range(20))
        assert {index for index, _ in together[0]} == {0, 1, 2}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_slice_belongs_to_one_worker(world: int, count: int) -> None:
    taken = [index for rank in range(world) for index in Workers(rank, world).slices(count)]
    assert taken == list(range(count))


def test_min_workers_must_not_exceed_workers() -> None:
    with pytest.raises(SettingsError, match="min_workers 3 is more than workers 2"):
        read_settings(TrainSettings, "workers: 2\nmin_workers: 3")
