"""The feature cache: built once, resumed, never read half-written, and read in the order of the images."""

import json
import threading
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captioning.data.augment import Augment, choose_view
from captioning.data.preprocess import Preprocess
from captioning.data.shards import ShardSet, iterate_shard
from captioning.errors import InputError, SettingsError
from captioning.models.cnn_lstm import CnnLstm
from captioning.storage import Location
from captioning.training import feature_cache, feature_files, stream
from captioning.training.feature_cache import CachedSample, FeatureCache
from captioning.training.stream import epoch_samples
from captioning.training.workers import Workers
from tests.tiny import PREPROCESS, tiny_model, tiny_settings, write_tiny_shards

COUNTS = {"train": 23, "val": 5}
PLACES = [
    {"rank": 0, "world_size": 1},
    {"rank": 0, "world_size": 2},
    {"rank": 1, "world_size": 2},
    {"rank": 2, "world_size": 3},
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), COUNTS)


@pytest.fixture(scope="module")
def model() -> CnnLstm:
    return tiny_model(tiny_settings(tune_from="blocks.2"))


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path / "features") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def build(root: Location, model: CnnLstm, shards: ShardSet, **options: Any) -> FeatureCache:
    augment = Augment(options.pop("flip", True), options.pop("crop", 0.6), options.pop("seed", 4))
    options = {"views": 3} | options
    return FeatureCache.build(root, model, Preprocess(PREPROCESS), augment, shards, **options)


def read(cache: FeatureCache, **options: Any) -> list[CachedSample]:
    asked = {"epoch": 0, "seed": 1, "rank": 0, "world_size": 1} | options
    return list(cache.epoch_samples(asked.pop("split", "train"), **asked))


class Opened:
    """Records which shards are opened for feature extraction, and by which thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by: list[tuple[str, str]] = []
        monkeypatch.setattr(feature_cache, "iterate_shard", self)

    def __call__(self, location: Location, name: str) -> Any:
        self.by.append((threading.current_thread().name, name))
        return iterate_shard(location, name)

    @property
    def names(self) -> list[str]:
        return sorted(name for _, name in self.by)


def files(cache: FeatureCache) -> list[str]:
    return cache.folder.names()


def test_the_features_are_those_of_the_views(root: Location, model: CnnLstm, shards: ShardSet) -> None:
    cache = build(root, model, shards)
    images = {s.key: s for shard in shards.split("train") for s in iterate_shard(shards.location, shard.name)}
    augment, preprocess = Augment(True, 0.6, 4), Preprocess(PREPROCESS)
    seen: Counter[int] = Counter()
    for epoch in range(3):
        for sample in read(cache, epoch=epoch):
            number = choose_view(1, epoch, sample.key, 3)
            seen[number] += 1
            original = images[sample.key]
            assert sample.captions == original.captions
            view = augment.view(sample.key, original.captions, number)
            pixels = torch.from_numpy(preprocess.from_bytes(original.image, view).pixels)[None]
            expected = model.stem(pixels)[0]
            assert sample.stem.dtype == np.float16
            assert sample.stem.shape == tuple(expected.shape)
            np.testing.assert_allclose(sample.stem.astype(np.float32), expected.numpy(), rtol=1e-3, atol=1e-4)
    assert set(seen) == {0, 1, 2}


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_order_is_that_of_the_images(
    root: Location, model: CnnLstm, shards: ShardSet, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW_SAMPLES", 10)
    cache = build(root, model, shards)
    for bytes_ahead in (1, 10**9):
        monkeypatch.setattr(feature_cache, "_READ_BYTES", bytes_ahead)
        for place in PLACES:
            for start in (0, 3, 9):
                asked = {"epoch": 2, "seed": 5, "shuffle": shuffle, "start": start} | place
                expected = [sample.key for sample in epoch_samples(shards, "train", **asked)]
                assert [sample.key for sample in read(cache, **asked)] == expected


def test_it_is_made_once(root: Location, model: CnnLstm, shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    told: list[str] = []
    cache = build(root, model, shards, log=told.append)
    assert opened.names == [f"train-00000{number}.tar" for number in range(4)]
    assert told[-1] == f"features of 23 of 23 images cached in {cache.folder}"
    before = {sample.key: sample.stem for sample in read(cache)}
    opened.by.clear()
    again = build(root, model, shards, log=told.append)
    assert opened.names == []
    assert len(told) == 4
    assert again.folder == cache.folder
    assert all((sample.stem == before[sample.key]).all() for sample in read(again))


def test_what_a_kill_left_half_done_does_not_count(
    root: Location, model: CnnLstm, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = build(root, model, shards)
    whole = {sample.key: sample.stem.copy() for sample in read(cache)}
    stems = {name: cache.folder / f"train-00000{name}.stems" for name in range(4)}
    (cache.folder / "train-000000.json").delete()  # killed before the index was written
    stems[0].write_bytes(b"\0" * 100)
    stems[1].write_bytes(stems[1].read_bytes()[:-2])
    stems[2].delete()
    opened = Opened(monkeypatch)
    again = build(root, model, shards)
    assert opened.names == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert all((sample.stem == whole[sample.key]).all() for sample in read(again))


def test_the_index_is_written_last(model: CnnLstm, shards: ShardSet, tmp_path: Path) -> None:
    written: list[str] = []

    class Spy(Location):
        def __truediv__(self, name: str) -> Location:
            return Spy(super().__truediv__(name).path)

        def write_bytes(self, data: bytes, *, temp: Location | None = None) -> None:
            written.append(self.name)
            super().write_bytes(data, temp=temp)

    build(Spy(str(tmp_path / "spied")), model, shards)
    shard_files = [name for number in range(4) for name in (f"train-00000{number}.stems", f"train-00000{number}.json")]
    assert written == ["cache.json", *shard_files]


class Together(Workers):
    """Workers as threads of this process."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(board))
        self._board, self._barrier = board, barrier

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(30)
        found = list(self._board)
        self._barrier.wait(30)
        return found


def run_together(world: int, work: Any) -> list[Any]:
    board, results, barrier = [None] * world, [None] * world, threading.Barrier(world)

    def run(rank: int) -> None:
        try:
            results[rank] = work(Together(rank, board, barrier))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), name=f"worker-{rank}") for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_workers_share_what_is_not_done(
    root: Location, model: CnnLstm, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = build(root / "alone", model, shards)
    opened = Opened(monkeypatch)
    first, second = run_together(2, lambda workers: build(root / "both", model, shards, workers=workers))
    assert Counter(opened.by) == {(f"worker-{number % 2}", f"train-00000{number}.tar"): 1 for number in range(4)}
    assert [[s.key for s in read(cache)] for cache in (first, second)] == [[s.key for s in read(alone)]] * 2
    assert files(first) == files(alone)
    opened.by.clear()
    for number in (1, 2, 3):
        (first.folder / f"train-00000{number}.json").delete()
    run_together(2, lambda workers: build(root / "both", model, shards, workers=workers))
    assert sorted(opened.by) == [
        ("worker-0", "train-000001.tar"),
        ("worker-0", "train-000003.tar"),
        ("worker-1", "train-000002.tar"),
    ]


def test_an_image_that_cannot_be_decoded_stops_every_worker(
    model: CnnLstm, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(location: Location, name: str) -> Any:
        for sample in iterate_shard(location, name):
            damaged = sample.key == "train0009"  # in the shard of worker 1
            yield type(sample)(sample.key, b"no image" if damaged else sample.image, sample.captions, sample.split)

    monkeypatch.setattr(feature_cache, "iterate_shard", broken)
    place = Location.parse(str(tmp_path))
    for error in run_together(2, lambda workers: build(place, model, shards, workers=workers)):
        assert isinstance(error, InputError)
        assert "'train0009' cannot be decoded" in str(error)


def test_what_the_features_rest_on_decides_where_they_are(shards: ShardSet, tmp_path: Path) -> None:
    root = Location.parse(str(tmp_path))
    model = tiny_model(tiny_settings(tune_from="blocks.2"))
    folders = [build(root, model, shards).folder.name]
    folders += [
        build(root, model, shards, **change).folder.name
        for change in (
            {"views": 2},
            {"flip": False},
            {"crop": 0.7},
            {"seed": 5},
            {"precision": "bf16"},
        )
    ]
    others = ShardSet(shards.location, shards.dataset, "another", shards.splits)
    folders.append(build(root, model, others).folder.name)
    sharper = Preprocess(type(PREPROCESS)(size=32, mode="crop", mean=PREPROCESS.mean, std=PREPROCESS.std))
    folders.append(FeatureCache.build(root, model, sharper, Augment(True, 0.6, 4), shards, views=3).folder.name)
    with torch.no_grad():
        model.encoder.trunk.model.conv_head.weight += 1  # trained: not in the stem
    assert build(root, model, shards).folder.name == folders[0]
    with torch.no_grad():
        model.encoder.trunk.model.blocks[0][0].conv.weight[0, 0, 0, 0] += 0.01
    folders.append(build(root, model, shards).folder.name)
    assert len(set(folders)) == len(folders) == 9
    about = json.loads((root / folders[0] / "cache.json").read_text())
    assert about["dataset"] == shards.identity
    assert about["preprocess"]["size"] == 32
    assert (about["views"], about["flip"], about["crop"], about["seed"]) == (3, True, 0.6, 4)


def test_views_that_cannot_differ_are_not_kept(root: Location, model: CnnLstm, shards: ShardSet) -> None:
    one = build(root, model, shards, flip=False, crop=1.0, views=3)
    two = build(root, model, shards, crop=1.0, views=3)
    assert json.loads((one.folder / "cache.json").read_text())["views"] == 1
    assert json.loads((two.folder / "cache.json").read_text())["views"] == 2
    # Without crops nothing is random, so the seed does not matter, and all runs share the features.
    assert build(root, model, shards, crop=1.0, views=2, seed=99).folder == two.folder


def test_other_splits_are_kept_plain(root: Location, model: CnnLstm, shards: ShardSet) -> None:
    cache = build(root, model, shards, splits=("train", "val"))
    samples = {s.key: s for shard in shards.split("val") for s in iterate_shard(shards.location, shard.name)}
    found = read(cache, split="val", shuffle=False)
    assert [sample.key for sample in found] == list(samples)
    for sample in found:
        pixels = torch.from_numpy(Preprocess(PREPROCESS).from_bytes(samples[sample.key].image).pixels)[None]
        np.testing.assert_allclose(sample.stem.astype(np.float32), model.stem(pixels)[0].numpy(), rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="val-000000.json"):
        read(build(root / "other", model, shards), split="val")


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("train-000001.stems", None, "lacks its file .*train-000001.stems"),
        ("train-000001.json", None, "lacks its file .*train-000001.json"),
        ("train-000001.json", lambda data: data[:-5], r"train-000001\.json.*is damaged.*Delete it"),
        ("train-000001.json", lambda data: data.replace(b'"views"', b'"vues"'), r"train-000001\.json.*is damaged"),
        ("train-000001.stems", lambda data: data[: len(data) // 2], r"train-000001\.stems.*is damaged.*Delete it"),
        ("train-000001.stems", lambda data: data[::-1], r"train-000001\.stems.*is damaged .*'train00.*Delete it"),
    ],
)
def test_damage_is_told_and_mended_by_deleting(
    root: Location, model: CnnLstm, shards: ShardSet, name: str, spoil: Any, said: str
) -> None:
    cache = build(root, model, shards)
    path = cache.folder / name
    if spoil is None:
        path.delete()
    else:
        path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=said):
        read(FeatureCache(cache.folder, shards))
    path.delete()
    assert len(read(build(root, model, shards))) == 23


def test_numbers_beyond_half_precision_are_refused(shards: ShardSet, tmp_path: Path) -> None:
    model = tiny_model(tiny_settings())
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter *= 100
    with pytest.raises(SettingsError, match="image 'train0000' reach .* more than half precision"):
        build(Location.parse(str(tmp_path)), model, shards)


def test_there_is_nothing_to_keep_of_an_encoder_that_is_trained(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="feature_cache"):
        build(Location.parse(str(tmp_path)), tiny_model(tiny_settings(tune_from="all")), shards)


def test_training_sets_that_changed_are_told(model: CnnLstm, tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path / "shards", {"train": 9})
    (first, *others) = shards.splits["train"]
    wrong = type(first)(first.name, first.samples + 1, first.captions, first.bytes)
    damaged = ShardSet(shards.location, "squares", "abc", {"train": (wrong, *others)})
    with pytest.raises(InputError, match=r"train-000000\.tar has 7 samples, not the 8"):
        build(Location.parse(str(tmp_path / "features")), model, damaged)


def test_remote_ranges_are_few_and_leave_out_what_is_far(
    model: CnnLstm, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = build(Location.parse(f"memory://{uuid.uuid4().hex}"), model, shards)
    file = feature_files.FeatureFile(cache.folder, shards.split("train")[0])
    size = file.stem_bytes
    ranges: list[tuple[int, int]] = []
    original = Location.read_range

    def noting(self: Location, offset: int, length: int) -> bytes:
        ranges.append((offset // size, length // size))
        return original(self, offset, length)

    monkeypatch.setattr(Location, "read_range", noting)
    monkeypatch.setattr(feature_files, "_MAX_GAP_BYTES", size)
    found = file.read([(6, 2), (0, 1), (1, 0), (1, 2), (1, 2)])
    assert ranges == [(1, 5), (20, 1)]  # stems 1, 3 and 5, with a gap of one each; 20 alone
    assert [sample.key for sample in found] == ["train0006", "train0000", "train0001", "train0001", "train0001"]
    ranges.clear()
    monkeypatch.setattr(feature_files, "_MAX_RANGE_BYTES", 2 * size)
    file.read([(0, 0), (0, 1), (0, 2), (1, 0)])
    assert ranges == [(0, 2), (2, 2)]


def test_an_image_of_sides_is_never_kept_mirrored(model: CnnLstm, tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path / "shards", {"train": 7})
    plain = build(Location.parse(str(tmp_path / "a")), model, shards, crop=1.0, views=2)

    def sided(location: Location, name: str) -> Any:
        for sample in iterate_shard(location, name):
            yield type(sample)(sample.key, sample.image, ("a square, left of nothing",), sample.split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_cache, "iterate_shard", sided)
        kept = build(Location.parse(str(tmp_path / "b")), model, shards, crop=1.0, views=2)
    for cache, same in ((plain, False), (kept, True)):
        file = feature_files.FeatureFile(cache.folder, shards.split("train")[0])
        once, twice = (np.stack([s.stem for s in file.read([(p, view) for p in range(7)])]) for view in (0, 1))
        assert np.array_equal(once, twice) == same
