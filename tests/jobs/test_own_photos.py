"""Fifty pictures of one's own and their captions: prepared, learned from, captioned, all through the command line."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from captioning.captioner import load_captioner
from captioning.data.shards import ShardSet, iterate_shard
from captioning.storage import Location
from jobs.__main__ import app
from tests.tiny import COLOURS, PLACES, square

FINE_TUNE = Path(__file__).parents[2] / "configs" / "train" / "fine-tune.yaml"
PICTURES = {
    f"picture {number}.jpg": (list(COLOURS)[number % 4], PLACES[number // 4 % 2], number) for number in range(50)
}
#: `crimson` and `floating` are no words of the tiny captioner; `once` is seen a single time.
CAPTIONS = {
    name: [f"A {colour.replace('red', 'crimson')} square, floating at the {place}." + " Once!" * (number == 7)]
    for name, (colour, place, number) in PICTURES.items()
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, picture in PICTURES.items():
        (folder / name).write_bytes(square(*picture))
    return folder


def write_csv(path: Path, splits: dict[str, str] | None = None) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", *(["split"] if splits else [])])
        for name, captions in CAPTIONS.items():
            table.writerows([name, caption, *([splits[name]] if splits else [])] for caption in captions)
    return path


def write_coco(path: Path) -> Path:
    images = [{"id": number, "file_name": name} for number, name in enumerate(CAPTIONS)]
    annotations = [
        {"id": number, "image_id": number, "caption": caption}
        for number, captions in enumerate(CAPTIONS.values())
        for caption in captions
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output + (result.stderr if result.stderr_bytes else "")


def prepare(kind: str, photos: Path, captions: Path, *more: str) -> tuple[ShardSet, str]:
    output = captions.parent / "shards"
    code, said = run("prepare", kind, "--images", photos, "--captions", captions, "-o", output, *more)
    assert code == 0, said
    return ShardSet.open(Location.parse(str(output))), said


@pytest.mark.parametrize("layout", ["csv", "csv with splits", "coco"])
def test_every_layout_gives_the_same_samples(layout: str, ray_local: None, photos: Path, tmp_path: Path) -> None:
    splits = {
        name: ("train", "val", "test")[number % 10 // 8 + (number % 10 == 9)] for number, name in enumerate(CAPTIONS)
    }
    if layout == "coco":
        shards, _ = prepare("coco", photos, write_coco(tmp_path / "captions.json"), "--set", "val_fraction=0.2")
    else:
        own = splits if "splits" in layout else None
        shards, _ = prepare("csv", photos, write_csv(tmp_path / "captions.csv", own), "--set", "val_fraction=0.2")
    samples = [
        sample
        for split in shards.splits.values()
        for info in split
        for sample in iterate_shard(shards.location, info.name)
    ]
    assert {sample.key: sample.captions for sample in samples} == {
        name.removesuffix(".jpg").replace(" ", "_"): tuple(captions) for name, captions in CAPTIONS.items()
    }
    if "splits" in layout:
        assert shards.counts == {"train": 40, "val": 5, "test": 5}
    else:
        assert shards.counts["train"] + shards.counts["val"] == 50
        assert 4 <= shards.counts["val"] <= 20


def test_fifty_pictures_make_a_captioner(ray_local: None, photos: Path, tiny_captioner: Path, tmp_path: Path) -> None:
    shards, _ = prepare("csv", photos, write_csv(tmp_path / "captions.csv"), "--set", "val_fraction=0.2")
    settings = [f"init={tiny_captioner}", "epochs=2", "decoding.beam_size=1"]
    sets = [part for setting in settings for part in ("--set", setting)]
    code, said = run("train", "--config", FINE_TUNE, "--data", shards.location, *sets, "-o", tmp_path / "run")
    assert code == 0, said
    assert "floating (" in said
    assert "crimson (" in said
    assert "once (1)" in said
    best = tmp_path / "run" / "best"
    captioner = load_captioner(str(best), device="cpu")
    own = load_captioner(str(tiny_captioner), device="cpu")
    assert (
        captioner.tokenizer.decode(captioner.tokenizer.encode("a crimson square floating"))
        == "a crimson square floating"
    )
    assert captioner.tokenizer.vocab_size == own.tokenizer.vocab_size + 3  # and the comma
    assert captioner.preprocess.settings == own.preprocess.settings
    # Eight words and the end, which the tiny captioner has no room for.
    assert captioner.decoding == dataclasses.replace(own.decoding, beam_size=1, max_new_tokens=9)
    assert "max_new_tokens is now 9" in said

    code, said = run("caption", photos, "-o", tmp_path / "table", "--model", best)
    assert code == 0, said
    assert pq.read_table(tmp_path / "table").num_rows == 50


@pytest.mark.slow
def test_too_little_to_judge_by(ray_local: None, photos: Path, tiny_captioner: Path, tmp_path: Path) -> None:
    """No image in `val` is an error that says what to do, a few are a note."""
    shards, said = prepare("csv", photos, write_csv(tmp_path / "captions.csv"), "--set", "val_fraction=0")
    assert "val_fraction" in said
    train: list[Any] = ["train", "--data", shards.location, "--set", f"init={tiny_captioner}", "-o", tmp_path / "run"]
    code, said = run(*train)
    assert code == 2
    assert "--set val_fraction=0.3" in said
    assert not (tmp_path / "run").exists()

    # The train split to judge by is a choice, and many images.
    code, said = run(*train, "--set", "validation.split=train", "--set", "epochs=zero")
    assert "epochs" in said
    splits = dict.fromkeys(CAPTIONS, "train") | dict.fromkeys(list(CAPTIONS)[:2], "val")
    (tmp_path / "few").mkdir()
    shards, _ = prepare("csv", photos, write_csv(tmp_path / "few" / "captions.csv", splits))
    sets = ["--set", f"init={tiny_captioner}", "--set", "epochs=1", "--set", "optim.lr=1e-9"]
    code, said = run("train", "--data", shards.location, *sets, "-o", tmp_path / "few-run")
    assert code == 0, said
    assert "'val' has only 2 images" in said
