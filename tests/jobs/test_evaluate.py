"""`evaluate` on tiny shards with a tiny captioner: what it prints, writes and refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from captioning.captioner import load_captioner
from captioning.data.shards import ShardSet
from captioning.storage import Location
from captioning.training.validation import describe, score
from jobs.__main__ import app
from tests.tiny import save_tiny_captioner, write_tiny_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_tiny_shards(folder / "shards", {"val": 3, "test": 11})
    save_tiny_captioner(folder / "model")
    return folder


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
        expected = score(describe(captioner, shards, "test")).summary()
        assert each["metrics"] == pytest.approx(expected)
        assert each["metrics"]["num_images"] == 11
        row = next(line for line in result.output.splitlines() if ("greedy" if size == 1 else f"beam {size}") in line)
        assert f" {expected['bleu_1']:.1f} " in row
        assert f" {expected['distinct']:.1f} " in row
    assert "11 images" in result.output
    assert "CIDEr-D" in result.output


def test_lines_hold_every_image_with_its_caption(folder: Path) -> None:
    output = folder / "captions.jsonl"
    result = run(folder, "-o", str(output), "--split", "val", "--set", "decoding.max_new_tokens=4")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(line["image_id"] for line in lines) == ["val0000", "val0001", "val0002"]
    for line in lines:
        assert line["beam_size"] == 2
        assert 0 < line["num_tokens"] <= 4
        assert line["score"] < 0
        assert line["references"]
        assert isinstance(line["caption"], str)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--split", "holiday"], "holiday"),
        (["--beams", "1,two"], "--beams"),
        (["--beams", "0"], "beam_size"),
        (["--beams", "1", "--set", "decoding.beam_size=2"], "leave one"),
        (["-o", "captions.txt"], ".jsonl"),
        (["--set", "decoding.beams=2"], "beam_size"),
        (["--set", "batch_size=many"], "batch_size"),
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
