import pytest

from captioning.data.annotations import Annotation
from captioning.data.problems import Problems
from captioning.data.shard_plan import cut_shards, make_key, plan_identity, plan_samples
from captioning.errors import InputError
from captioning.storage import FileInfo


def annotation(image, *, split=None, captions=("A dog.",)):
    return Annotation(image, image, captions, split)


def plan(annotations, files, splits=None, val_fraction=0.1):
    problems = Problems()
    listed = [FileInfo(path, 10, "1") for path in files]
    samples = plan_samples(
        annotations, listed, splits, problems, val_fraction=val_fraction, extensions=frozenset({".jpg", ".png"})
    )
    return samples, problems


def by_image(samples):
    return {sample.image: sample for sample in samples}


def test_captions_without_image_and_images_without_captions_are_reported():
    samples, problems = plan([annotation("1.jpg"), annotation("2.jpg")], ["1.jpg", "3.jpg", "deep/4.PNG", "readme.txt"])
    assert [sample.image for sample in samples] == ["1.jpg"]
    assert problems.examples == {
        "images with captions that are not in the image folder, skipped": ["2.jpg"],
        "images without captions, skipped": ["3.jpg", "deep/4.PNG"],
    }


def test_a_splits_file_wins_over_the_annotations_own_splits():
    annotations = [annotation("1.jpg", split="train"), annotation("val2014/2.jpg", split="train")]
    samples, _ = plan(annotations, ["1.jpg", "val2014/2.jpg"], {"1.jpg": "test", "2.jpg": "val"})
    assert {sample.image: sample.split for sample in samples} == {"1.jpg": "test", "val2014/2.jpg": "val"}


@pytest.mark.parametrize("splits", [{"1.jpg": "train"}, None])
def test_images_without_a_split_are_reported(splits):
    own = "train" if splits is None else None
    samples, problems = plan([annotation("1.jpg", split=own), annotation("2.jpg")], ["1.jpg", "2.jpg"], splits)
    assert [sample.image for sample in samples] == ["1.jpg"]
    assert problems.examples == {"images without a split, skipped": ["2.jpg"]}


def test_a_split_that_cannot_name_a_file_is_no_split():
    _, problems = plan([annotation("1.jpg"), annotation("2.jpg")], ["1.jpg", "2.jpg"], {"1.jpg": "a/b", "2.jpg": "val"})
    assert problems.examples == {"images without a split, skipped": ["1.jpg"]}


def test_the_hash_split_depends_on_the_name_alone_and_keeps_the_share():
    names = [f"{number}.jpg" for number in range(1000)]
    whole = by_image(plan([annotation(name) for name in names], names)[0])
    half = by_image(plan([annotation(name) for name in reversed(names[:500])], names)[0])
    assert all(sample.split == whole[name].split for name, sample in half.items())
    assert 70 <= sum(sample.split == "val" for sample in whole.values()) <= 130
    assert {sample.split for sample in whole.values()} == {"train", "val"}
    assert {sample.split for sample in plan([annotation("1.jpg")], ["1.jpg"], None, 0.0)[0]} == {"train"}
    assert {sample.split for sample in plan([annotation("1.jpg")], ["1.jpg"], None, 1.0)[0]} == {"val"}


def test_images_are_found_when_one_path_is_the_end_of_the_other():
    samples, _ = plan([annotation("val2014/1.jpg"), annotation("2.jpg")], ["1.jpg", "train2014/2.jpg"])
    assert {sample.image for sample in samples} == {"1.jpg", "train2014/2.jpg"}


def test_a_name_in_another_folder_or_in_two_is_not_guessed():
    samples, problems = plan(
        [annotation("a/1.jpg"), annotation("2.jpg"), annotation("3.jpg")], ["b/1.jpg", "a/2.jpg", "b/2.jpg", "3.jpg"]
    )
    assert [sample.image for sample in samples] == ["3.jpg"]
    assert problems.counts["images with captions that are not in the image folder, skipped"] == 2


def test_one_file_under_two_names_is_taken_once():
    samples, problems = plan([annotation("1.jpg"), annotation("./1.jpg")], ["1.jpg"])
    assert len(samples) == 1
    assert problems.examples == {"images listed under two names, the second skipped": ["./1.jpg"]}


def test_keys_are_the_names_and_stay_apart():
    names = ["a/1.jpg", "b/1.jpg", "2.jpg", "x.y.jpg", "x_y.jpg"]
    samples = by_image(plan([annotation(name) for name in names], names)[0])
    keys = {name: sample.key for name, sample in samples.items()}
    assert keys["2.jpg"] == "2"
    assert (keys["a/1.jpg"], keys["b/1.jpg"]) == ("a/1", "b/1")
    assert keys["x.y.jpg"] == "x_y"
    assert keys["x_y.jpg"].startswith("x_y-")


@pytest.mark.parametrize(
    ("image", "key"),
    [
        ("1000.jpg", "1000"),
        ("val2014/COCO_1.jpg", "COCO_1"),
        ("a b.c.jpg", "a_b_c"),
        ("/abs/olute.png", "olute"),
        ("naïve.jpg", "naïve"),
    ],
)
def test_a_key_has_no_dot_and_no_folder(image, key):
    assert make_key(image) == key


def test_a_folder_that_webdataset_would_pass_over_is_renamed():
    assert make_key("__x__/1.jpg", full_path=True) == "_x__/1"


def test_shards_hold_one_split_each_and_every_sample_once():
    names = [f"{number}.jpg" for number in range(25)]
    splits = {name: "test" if index % 5 == 0 else "train" for index, name in enumerate(names)}
    samples, _ = plan([annotation(name) for name in names], names, splits)
    shards = cut_shards(samples, shard_samples=8)
    assert [(shard.name, len(shard.samples)) for shard in shards] == [
        ("train-000000.tar", 8),
        ("train-000001.tar", 8),
        ("train-000002.tar", 4),
        ("test-000000.tar", 5),
    ]
    assert all({sample.split for sample in shard.samples} == {shard.name.split("-")[0]} for shard in shards)
    assert sorted(sample.image for shard in shards for sample in shard.samples) == sorted(names)


def test_large_images_make_shards_of_fewer_samples():
    problems = Problems()
    files = [FileInfo(f"{number}.jpg", 50 * 2**20, "1") for number in range(4)]
    samples = plan_samples(
        [annotation(file.path) for file in files], files, None, problems, val_fraction=0, extensions=frozenset()
    )
    assert [len(shard.samples) for shard in cut_shards(samples, shard_samples=100)] == [2, 2]


def test_the_plan_does_not_depend_on_the_order_of_the_annotations():
    names = [f"{number}.jpg" for number in range(20)]
    one = cut_shards(plan([annotation(name) for name in names], names)[0], shard_samples=6)
    two = cut_shards(plan([annotation(name) for name in reversed(names)], reversed(names))[0], shard_samples=6)
    assert one == two
    assert plan_identity(one, jpeg_quality=95) == plan_identity(two, jpeg_quality=95)


def test_the_identity_tells_captions_and_settings_apart():
    one = cut_shards(plan([annotation("1.jpg")], ["1.jpg"])[0], shard_samples=6)
    other = cut_shards(plan([annotation("1.jpg", captions=("A cat.",))], ["1.jpg"])[0], shard_samples=6)
    identities = {plan_identity(one, q=95), plan_identity(other, q=95), plan_identity(one, q=90)}
    assert len(identities) == 3


def test_nothing_in_common_is_an_input_error_that_says_what_was_found():
    with pytest.raises(
        InputError, match=r"belong together(.|\n)*1 images with captions.*1\.jpg(.|\n)*1 images without"
    ):
        plan([annotation("1.jpg")], ["2.jpg"])
