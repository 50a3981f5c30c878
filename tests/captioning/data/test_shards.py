import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from captioning.data.shard_plan import PlannedSample, PlannedShard
from captioning.data.shard_writer import write_shard
from captioning.data.shards import ShardInfo, ShardSet, iterate_shard
from captioning.errors import InputError, StorageError
from captioning.storage import Location


def encoded(kind, seed=0, mode="RGB"):
    rgb = np.random.default_rng(seed).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(rgb).convert(mode).save(data, kind)
    return data.getvalue()


def planned(image, captions=("A dog.", "It runs."), key=None):
    return PlannedSample(key or image.partition(".")[0], image, image, 1, captions, "train")


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.jpg").write_bytes(encoded("JPEG", number))
    return tmp_path


def write(folder, samples, name="train-000000.tar", target="out"):
    shard = PlannedShard(name, tuple(samples))
    root = Location.parse(str(folder))
    return write_shard(root / target, root / "images", shard, jpeg_quality=95)


def shard_of_four(folder):
    write(folder, [planned(f"{number}.jpg") for number in range(4)])
    return Location.parse(str(folder)) / "out"


def test_what_is_written_is_read_back_in_order(folder):
    report = write(folder, [planned("1.jpg", ("Ein Café", "日本")), planned("0.jpg", key="deep/zero")])
    samples = list(iterate_shard(Location.parse(str(folder)) / "out", "train-000000.tar"))
    assert [(sample.key, sample.captions, sample.split) for sample in samples] == [
        ("1", ("Ein Café", "日本"), "train"),
        ("deep/zero", ("A dog.", "It runs."), "train"),
    ]
    # JPEGs are kept byte for byte.
    assert samples[0].image == (folder / "images/1.jpg").read_bytes()
    tar = folder / "out/train-000000.tar"
    assert report.info == ShardInfo("train-000000.tar", 2, 4, tar.stat().st_size)
    assert not report.problems


def test_the_layout_is_that_of_the_design(folder):
    write(folder, [planned("1.jpg")])
    with tarfile.open(folder / "out/train-000000.tar") as tar:
        assert tar.getnames() == ["1.jpg", "1.json"]
        about = json.load(tar.extractfile("1.json"))
        assert all((member.mtime, member.uid, member.uname) == (0, 0, "") for member in tar)
    assert about == {"image_id": "1.jpg", "captions": ["A dog.", "It runs."], "split": "train"}


def test_writing_again_gives_the_same_bytes(folder):
    samples = [planned(f"{number}.jpg") for number in range(4)]
    write(folder, samples, target="one")
    write(folder, samples, target="two")
    assert (folder / "one/train-000000.tar").read_bytes() == (folder / "two/train-000000.tar").read_bytes()
    assert [path.name for path in (folder / "one").iterdir()] == ["train-000000.tar"]


def test_other_formats_become_jpegs_and_that_is_said(folder):
    (folder / "images/p.png").write_bytes(encoded("PNG", 7, "RGBA"))
    (folder / "images/cmyk.jpg").write_bytes(encoded("JPEG", 8, "CMYK"))
    report = write(folder, [planned("p.png"), planned("cmyk.jpg")])
    png, cmyk = iterate_shard(Location.parse(str(folder)) / "out", "train-000000.tar")
    with Image.open(io.BytesIO(png.image)) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (10, 12), "RGB")
    assert cmyk.image == (folder / "images/cmyk.jpg").read_bytes()
    assert report.problems.examples == {"images in other formats, encoded as JPEG of quality 95": ["p.png"]}


def test_images_that_do_not_decode_are_left_out_and_reported(folder):
    whole = (folder / "images/0.jpg").read_bytes()
    (folder / "images/text.jpg").write_bytes(b"not an image at all, but a text")
    (folder / "images/empty.jpg").write_bytes(b"")
    (folder / "images/cut.jpg").write_bytes(whole[: len(whole) // 2])
    names = ["text.jpg", "0.jpg", "empty.jpg", "gone.jpg", "cut.jpg"]
    report = write(folder, [planned(name) for name in names])
    samples = list(iterate_shard(Location.parse(str(folder)) / "out", "train-000000.tar"))
    assert [sample.key for sample in samples] == ["0"]
    assert (report.info.samples, report.info.captions) == (1, 2)
    named = {name for names in report.problems.examples.values() for name in names}
    assert named == {"cut.jpg", "empty.jpg", "gone.jpg", "text.jpg"}
    assert all(kind.endswith("skipped") for kind in report.problems.counts)


@pytest.mark.parametrize("keep", [[], [0], [3], [1, 2], [0, 2, 3], [0, 1, 2, 3]])
def test_samples_are_chosen_by_position(folder, keep):
    location = shard_of_four(folder)
    samples = iterate_shard(location, "train-000000.tar", keep)
    assert [sample.key for sample in samples] == [str(position) for position in keep]


def test_a_damaged_shard_is_an_input_error(folder):
    location = shard_of_four(folder)
    tar = folder / "out/train-000000.tar"
    whole = tar.read_bytes()
    for broken in (whole[:700], b"x" * 2000, whole.replace(b'{"image_id"', b'["image_id"')):
        tar.write_bytes(broken)
        with pytest.raises(InputError, match=r"train-000000\.tar is damaged.*prepare the dataset again"):
            list(iterate_shard(location, "train-000000.tar"))


def test_a_missing_shard_is_a_storage_error(folder):
    with pytest.raises(StorageError) as raised:
        list(iterate_shard(Location.parse(str(folder)), "train-000009.tar"))
    assert raised.value.error_class == "missing"


def test_a_set_is_known_by_its_counts_file(tmp_path):
    location = Location.parse(str(tmp_path))
    shards = {"train": (ShardInfo("train-000000.tar", 3, 15, 99), ShardInfo("train-000001.tar", 2, 10, 88)), "val": ()}
    made = ShardSet(location, "csv", "abc", shards)
    (location / "shards.json").write_text(json.dumps(made.to_json()))
    opened = ShardSet.open(location)
    assert opened == made
    assert opened.counts == {"train": 5, "val": 0}
    assert [info.name for info in opened.split("train")] == ["train-000000.tar", "train-000001.tar"]
    with pytest.raises(InputError, match=r"no 'val' split.*train \(5\)"):
        opened.split("val")


def test_no_counts_file_or_a_damaged_one_is_an_input_error(tmp_path):
    location = Location.parse(str(tmp_path))
    with pytest.raises(InputError, match="jobs prepare"):
        ShardSet.open(location)
    for text in ("{", "[]", "{}", '{"format_version": 9}', '{"format_version": 1, "splits": []}'):
        (location / "shards.json").write_text(text)
        with pytest.raises(InputError, match="damaged"):
            ShardSet.open(location)


def test_shards_and_images_may_be_behind_any_uri(folder):
    remote = Location.parse("memory://test-shards-behind-a-uri")
    (remote / "images/0.jpg").write_bytes((folder / "images/0.jpg").read_bytes())
    shard = PlannedShard("train-000000.tar", (planned("0.jpg"),))
    write_shard(remote / "out", remote / "images", shard, jpeg_quality=95)
    (sample,) = iterate_shard(remote / "out", "train-000000.tar")
    assert (sample.key, sample.image) == ("0", (folder / "images/0.jpg").read_bytes())
