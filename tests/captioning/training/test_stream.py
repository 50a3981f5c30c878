import io
import itertools
import json
import tarfile

import pytest

from captioning.data.shards import Sample, ShardInfo, ShardSet
from captioning.errors import InputError
from captioning.storage import Location
from captioning.training import stream
from captioning.training.stream import epoch_samples, slice_size

SIZES = (7, 5, 1, 7, 3)
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    infos = []
    number = 0
    for index, size in enumerate(SIZES):
        name = f"train-{index:06d}.tar"
        with tarfile.open(folder / name, "w") as tar:
            for _ in range(size):
                about = json.dumps({"image_id": str(number), "captions": [f"image {number}"], "split": "train"})
                for suffix, data in (("jpg", b"jpeg %d" % number), ("json", about.encode())):
                    member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                number += 1
        infos.append(ShardInfo(name, size, size, (folder / name).stat().st_size))
    return ShardSet(Location.parse(str(folder)), "csv", "abc", {"train": tuple(infos)})


def keys(shards, *, epoch=0, seed=0, rank=0, world_size=1, shuffle=True, start=0):
    samples = epoch_samples(
        shards, "train", epoch=epoch, seed=seed, rank=rank, world_size=world_size, shuffle=shuffle, start=start
    )
    return [int(sample.key) for sample in samples]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, TOTAL, TOTAL + 4])
def test_every_sample_is_seen_once_an_epoch_and_shares_are_equal_to_one(shards, world, shuffle):
    shares = [keys(shards, epoch=2, rank=rank, world_size=world, shuffle=shuffle) for rank in range(world)]
    assert sorted(key for share in shares for key in share) == list(range(TOTAL))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == [slice_size(TOTAL, rank=rank, world_size=world) for rank in range(world)]


@pytest.mark.parametrize("window", [4, 10, 2048])
@pytest.mark.parametrize("shuffle", [True, False])
def test_starting_later_leaves_the_rest_unchanged(shards, shuffle, window, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_SAMPLES", window)
    whole = keys(shards, rank=1, world_size=2, shuffle=shuffle)
    for start in range(len(whole) + 2):
        assert keys(shards, rank=1, world_size=2, shuffle=shuffle, start=start) == whole[start:]


def test_windows_bounded_by_bytes_lose_nothing(shards, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_BYTES", 1)
    assert sorted(keys(shards)) == list(range(TOTAL))


def test_the_same_arguments_give_the_same_order(shards):
    assert keys(shards, epoch=3, seed=5) == keys(shards, epoch=3, seed=5)


def test_epochs_and_seeds_give_other_orders(shards):
    orders = {tuple(keys(shards, epoch=epoch, seed=seed)) for epoch in range(3) for seed in (0, 1, -1)}
    assert len(orders) == 9


def test_without_shuffling_the_order_is_that_of_the_shards(shards):
    assert keys(shards, shuffle=False) == list(range(TOTAL))
    assert keys(shards, shuffle=False, epoch=4, seed=4) == list(range(TOTAL))


def test_shuffling_mixes_samples_of_different_shards(shards):
    order = keys(shards)
    neighbours = sum(abs(one - other) == 1 for one, other in itertools.pairwise(order))
    assert neighbours < TOTAL // 2


def test_samples_come_whole(shards):
    samples = list(epoch_samples(shards, "train", epoch=0, seed=0, rank=0, world_size=1, shuffle=True))
    assert {sample.key: sample for sample in samples}["004"] == Sample("004", b"jpeg 4", ("image 4",), "train", "4")


def test_only_the_shards_that_are_needed_are_opened(shards, monkeypatch):
    opened = []

    def counting(location, name, keep=None):
        opened.append(name)
        return iterate(location, name, keep)

    iterate = stream.iterate_shard
    monkeypatch.setattr(stream, "iterate_shard", counting)
    assert keys(shards, shuffle=False, rank=1, world_size=3, start=2) == list(range(9, 15))
    assert opened == ["train-000001.tar", "train-000002.tar", "train-000003.tar"]
    opened.clear()
    monkeypatch.setattr(stream, "WINDOW_SAMPLES", 1)
    assert len(keys(shards, start=TOTAL - 1)) == 1
    assert len(opened) == 1


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_shard_with_fewer_samples_than_counted_is_an_error(shards, shuffle):
    (first, *others) = shards.splits["train"]
    wrong = ShardInfo(first.name, first.samples + 1, first.captions, first.bytes)
    damaged = ShardSet(shards.location, "csv", "abc", {"train": (wrong, *others)})
    with pytest.raises(InputError, match=r"train-000000\.tar has fewer samples"):
        keys(damaged, shuffle=shuffle)


def test_a_split_that_is_not_there_is_an_error(shards):
    with pytest.raises(InputError, match="no 'dev' split"):
        next(epoch_samples(shards, "dev", epoch=0, seed=0, rank=0, world_size=1, shuffle=True))


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_world_is_refused(shards, rank):
    with pytest.raises(ValueError, match="of 2 workers"):
        keys(shards, rank=rank, world_size=2)
