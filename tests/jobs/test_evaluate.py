"""`evaluate` on tiny shards with a tiny captioner: what it prints, writes and refuses."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from captioning.captioner import load_captioner
from captioning.data.shards import ShardSet
from captioning.storage import Location
from captioning.training.validation import caption_split, score_samples
from jobs.__main__ import app
from tests.tiny import save_tiny_captioner, write_tiny_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_tiny_shards(folder / "shards", {"val": 3, "test": 11})
    write_captions_twice(folder / "twice")
    save_tiny_captioner(folder / "model")
    return folder


def write_captions_twice(folder: Path) -> None:
    """Tiny shards in which every photo's captions come twice."""
    write_tiny_shards(folder, {"val": 3})
    [path] = folder.glob("val-*.tar")
    with tarfile.open(path) as tar:
        files = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            if name.endswith(".json"):
                about = json.loads(data)
                data = json.dumps({**about, "captions": about["captions"] * 2}).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def run(folder: Path, *more: str, data: str = "shards", model: str = "model") -> Result:
    return CliRunner().invoke(
        app, ["evaluate", "--data", str(folder / data), "--model", str(folder / model), "--set", "meteor=false", *more]
    )


def test_the_metrics_are_printed_and_written(folder: Path) -> None:
    output = folder / "out" / "metrics.json"
    result = run(folder, "--beams", "1,3", "-o", str(output))
    assert result.exit_code == 0, result.output
    written = json.loads(output.read_text())
    assert written["split"] == "test"
    assert [each["decoding"]["beam_size"] for each in written["evaluations"]] == [1, 3]
    shards = ShardSet.open(Location.parse(str(folder / "shards")))
    for each in written["evaluations"]:
        size = each["decoding"]["beam_size"]
        captioner = load_captioner(str(folder / "model"), decoding={"beam_size": size})
        expected = score_samples(caption_split(captioner, shards, "test")).summary()
        assert each["metrics"] == pytest.approx(expected)
        assert each["metrics"]["num_images"] == 11
        size_named = "greedy" if size == 1 else f"beam {size}"
        quality, speech = (line for line in result.output.splitlines() if size_named in line)
        assert f" {expected['bleu_1']:.1f} " in quality
        assert f" {expected['recall_at_10']:.1f} " in speech
        assert f" {expected['distinct']:.1f} " in speech
    # Some squares have one caption only, so that nobody can be scored against the others.
    assert written["people"] is None
    assert "a person" not in result.output
    assert "11 images" in result.output
    assert "CIDEr-D" in result.output


def test_lines_hold_every_image_with_its_caption(folder: Path) -> None:
    output = folder / "captions.jsonl"
    result = run(folder, "-o", str(output), "--split", "val", "--set", "decoding.max_new_tokens=4")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == ["val0000", "val0001", "val0002"]
    assert all(line["image_id"] == f"id of {line['key']}" for line in lines)
    for line in lines:
        assert line["beam_size"] == 2
        assert 0 < line["num_tokens"] <= 4
        assert line["score"] < 0
        assert line["references"]
        assert isinstance(line["caption"], str)
        assert line["ended"] is True or line["num_tokens"] == 4
        assert 1 <= line["own_rank"] <= 3


def test_a_person_is_scored_on_the_same_photos(folder: Path) -> None:
    output = folder / "people.json"
    result = run(folder, "-o", str(output), "--split", "val", data="twice")
    assert result.exit_code == 0, result.output
    people = json.loads(output.read_text())["people"]
    quality, speech = (line for line in result.output.splitlines() if "a person " in line)
    # People who describe a square in the same words get full scores, and find it.
    assert people["bleu_4"] == pytest.approx(100, abs=1e-3)
    assert people["recall_at_1"] == 100
    assert people["num_images"] == 3
    assert " 100.0 " in quality
    assert f" {people['recall_at_1']:.1f} " in speech
    without = run(folder, "--split", "val", "--set", "people=false", data="twice")
    assert "a person " not in without.output


def test_a_person_who_cannot_be_scored_is_told_after_the_scores(folder: Path) -> None:
    output = folder / "no-people.json"
    result = run(folder, "-o", str(output), "--set", "people=true")
    assert result.exit_code == 1, result.output
    assert "fewer than two captions" in result.output
    assert "CIDEr-D" in result.output
    assert json.loads(output.read_text())["people"] is None


SEARCH = ("--search", "--split", "val", "--set", "search.beam_sizes=[1,3]", "--set", "search.length_penalties=[1.0]")
FEW = ("--set", "search.repetition_penalties=[1.0, 1.5]", "--set", "search.no_repeat_ngram_sizes=[0]")


def test_a_search_is_printed_and_written(folder: Path) -> None:
    output = folder / "search.json"
    before = (folder / "model" / "config.json").read_text()
    result = run(folder, *SEARCH, *FEW, "-o", str(output))
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())["decoding_search"]
    assert len(record) == 4
    assert {each["decoding"]["beam_size"] for each in record} == {1, 2, 3}
    assert "beam 2 (current)" in result.output
    assert f"--set decoding.beam_size={record[0]['decoding']['beam_size']}" in result.output
    assert (folder / "model" / "config.json").read_text() == before


def test_a_search_can_be_saved(folder: Path) -> None:
    save_tiny_captioner(folder / "searched")
    result = run(folder, *SEARCH, *FEW, "--save", model="searched")
    assert result.exit_code == 0, result.output
    config = json.loads((folder / "searched" / "config.json").read_text())
    first = config["provenance"]["decoding_search"][0]["decoding"]
    assert config["decoding"] == first
    assert load_captioner(str(folder / "searched")).decoding.beam_size == first["beam_size"]


def test_nothing_is_saved_into_what_is_no_folder(folder: Path) -> None:
    data = ["--data", str(folder / "shards")]
    result = CliRunner().invoke(app, ["evaluate", *data, "--model", "flickr-lstm", "--search", "--save"])
    assert result.exit_code == 2, result.output
    assert "--save" in result.output


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--split", "holiday"], "holiday"),
        (["--beams", "1,two"], "--beams"),
        (["--beams", "0"], "beam_size"),
        (["--beams", "1", "--set", "decoding.beam_size=2"], "only one"),
        (["-o", "captions.txt"], ".jsonl"),
        (["--set", "decoding.beams=2"], "beam_size"),
        (["--set", "batch_size=many"], "batch_size"),
        (["--save"], "--search"),
        (["--search", "--beams", "1,3"], "search.beam_sizes"),
        (["--search", "-o", "captions.jsonl"], ".json"),
        (["--search", "--set", "search.margin=-1"], "search.margin"),
    ],
)
def test_wrong_usage_ends_with_one_message(folder: Path, more: list[str], says: str) -> None:
    result = run(folder, *more)
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("wrong", [{"data": "nothing"}, {"model": "nothing"}])
def test_what_is_not_there_is_refused(folder: Path, wrong: dict[str, str]) -> None:
    result = run(folder, **wrong)
    assert result.exit_code == 2, result.output
    assert "nothing" in result.output
