import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from captioning.data.shards import ShardSet, iterate_shard
from captioning.storage import Location
from jobs.__main__ import app


@pytest.fixture
def dataset(tmp_path):
    """Six JPEGs and a PNG, three of the dataset's small faults, and Karpathy's splits."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(7):
        rgb = np.random.default_rng(number).integers(0, 255, (12, 10, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(rgb).save(data, "PNG" if number == 6 else "JPEG")
        (images / f"{number}.jpg").write_bytes(data.getvalue())
    (images / "broken.jpg").write_bytes(b"no image")
    (images / "alone.jpg").write_bytes((images / "0.jpg").read_bytes())
    names = [*(f"{number}.jpg" for number in range(7)), "broken.jpg", "gone.jpg"]
    lines = [f"{name}| {index}| Caption {index} of {name}.\n" for name in names for index in range(2)]
    (tmp_path / "results.csv").write_text("image_name| comment_number| comment\n" + "".join(lines) + "0.jpg| 2|  \n")
    split = {"0.jpg": "val", "1.jpg": "test"}
    entries = [{"filename": name, "split": split.get(name, "train"), "sentences": []} for name in names]
    (tmp_path / "splits.json").write_text(json.dumps({"images": entries}))
    return tmp_path


def run(folder, *more, dataset="flickr30k", images="images", captions="results.csv", output="out"):
    arguments = ["prepare", dataset, "--images", str(folder / images), "--captions", str(folder / captions)]
    return CliRunner().invoke(app, [*arguments, "-o", str(folder / output), *more])


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_dataset_becomes_shards_and_its_faults_are_listed(dataset, ray_local):
    result = run(dataset, "--splits", str(dataset / "splits.json"), "--set", "shard_samples=2")
    assert result.exit_code == 0, result.output
    location = Location.parse(str(dataset / "out"))
    shards = ShardSet.open(location)
    assert shards.counts == {"train": 5, "val": 1, "test": 1}
    assert [info.name for info in shards.split("train")] == [f"train-{number:06d}.tar" for number in range(3)]
    read = [
        sample for split in shards.splits.values() for info in split for sample in iterate_shard(location, info.name)
    ]
    assert sorted(sample.key for sample in read) == [str(number) for number in range(7)]
    for sample in read:
        assert sample.captions == tuple(f"Caption {index} of {sample.key}.jpg." for index in range(2))
        assert sample.key == "6" or sample.image == (dataset / f"images/{sample.key}.jpg").read_bytes()
    for line in (
        "1 empty captions, skipped: results.csv:20",
        "1 images with captions that are not in the image folder, skipped: gone.jpg",
        "1 images without captions, skipped: alone.jpg",
        "1 images that cannot be decoded (not_an_image), skipped: broken.jpg",
        "1 images in other formats, encoded as JPEG of quality 95: 6.jpg",
        "7 samples (train 5, val 1, test 1)",
    ):
        assert line in result.output


def test_the_same_again_is_already_prepared_and_another_is_refused(dataset, ray_local):
    assert run(dataset).exit_code == 0
    before = contents(dataset / "out")
    again = run(dataset)
    assert again.exit_code == 0
    assert "Already prepared" in again.output
    for other in (run(dataset, "--splits", str(dataset / "splits.json")), run(dataset, "--set", "shard_samples=3")):
        assert other.exit_code == 2
        assert "another dataset" in other.output
    assert contents(dataset / "out") == before


def test_a_prepare_that_was_stopped_is_finished_by_the_same_command(dataset, ray_local):
    assert run(dataset).exit_code == 0
    before = contents(dataset / "out")
    # As a stop leaves it: the plan, some shards, and no counts.
    (dataset / "out/shards.json").unlink()
    next((dataset / "out").glob("train-*.tar")).unlink()
    result = run(dataset)
    assert result.exit_code == 0
    assert "Prepared" in result.output
    assert contents(dataset / "out") == before


def test_without_splits_a_stated_share_goes_to_val(dataset, ray_local):
    result = run(dataset, "--set", "val_fraction=0.5")
    assert "50.0% of the images go to val" in result.output
    counts = ShardSet.open(Location.parse(str(dataset / "out"))).counts
    assert set(counts) == {"train", "val"}
    assert sum(counts.values()) == 7


def test_images_of_which_none_decodes_are_refused_and_leave_no_files(dataset, ray_local):
    (dataset / "texts").mkdir()
    for number in range(7):
        (dataset / f"texts/{number}.jpg").write_bytes(b"no image")
    result = run(dataset, images="texts")
    assert result.exit_code == 2
    assert "None of the images" in result.output
    assert list((dataset / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "flickr9"}, "Unknown dataset 'flickr9'"),
        ({"images": "nowhere"}, "--images"),
        ({"captions": "nowhere.csv"}, "--captions"),
        ({"captions": "images"}, "--captions"),
        ({"output": "results.csv"}, "is a file"),
        ({"output": "results.csv/below"}, "cannot be written"),
        ({"output": "images"}, None),
    ],
)
def test_wrong_usage_is_one_message_and_writes_nothing(dataset, change, message):
    # Unknown tars are a conflict like another dataset's shards.
    (dataset / "images/train-000000.tar").write_bytes(b"")
    before = sorted(path.name for path in dataset.rglob("*"))
    result = run(dataset, **change)
    assert result.exit_code == 2
    assert (message or "holds the shards of another dataset") in result.output
    assert "Traceback" not in result.output
    assert sorted(path.name for path in dataset.rglob("*")) == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("val_fraction=2", "val_fraction"),
        ("shard_samples=none", "shard_samples"),
        ("shard_size=3", "unknown key 'shard_size'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_read(dataset, setting, message):
    result = run(dataset, "--set", setting, captions="nowhere.csv")
    assert result.exit_code == 2
    assert message in result.output
    assert not (dataset / "out").exists()
