"""The page of a training run, and its charts."""

import json
from pathlib import Path

from captioning.data.shards import ShardSet, iterate_shard
from captioning.storage import Location
from jobs.training.charts import Series, downsample, line_chart, nice_ticks
from jobs.training.page import TrainPage
from tests.tiny import write_tiny_shards


def step(number: int, stage: str, loss: float) -> dict:
    place = {"step": number, "total_steps": 40, "stage": stage, "epoch": number / 10, "images_seen": 32 * number}
    return {"kind": "step", **place, "seconds": float(number), "loss": loss, "lr": 1e-3, "images_per_second": 9.5}


def validation(number: int, stage: str, cider: float, samples: list) -> dict:
    place = {"step": number, "total_steps": 40, "stage": stage, "epoch": number / 10, "images_seen": 32 * number}
    scores = {"cider_d": cider, "bleu_4": cider / 3, "rouge_l": cider / 2}
    return {"kind": "validation", **place, "seconds": float(number), **scores, "best": True, "samples": samples}


def write_run(tmp_path: Path) -> tuple[TrainPage, str]:
    write_tiny_shards(tmp_path / "shards", {"train": 4, "val": 3})
    shards = ShardSet.open(Location.parse(str(tmp_path / "shards")))
    key = next(iterate_shard(shards.location, shards.split("val")[0].name)).key
    output = tmp_path / "run"
    output.mkdir()
    records = [
        {"kind": "note", "step": 0, "total_steps": 40, "message": "a <note>"},
        step(10, "one", 5.0),
        validation(10, "one", 20.0, [[key, "a <b>dog</b>"]]),
        step(20, "two", 3.0),
        validation(20, "two", 60.5, [[key, "a dog runs"]]),
        validation(30, "two", 55.0, [[key, "a dog runs"]]),
    ]
    (output / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    stages = [{"name": "one"}, {"name": "two", "objective": "self_critical"}]
    settings = {"objective": "cross_entropy", "stages": stages}
    (output / "train.json").write_text(json.dumps({"settings": {**settings, "init": "s3://me:secret@bucket/a"}}))
    return TrainPage(Location.parse(str(output)), shards, "val"), key


def test_the_page_has_curves_stages_evaluations_and_samples(tmp_path: Path) -> None:
    page, key = write_run(tmp_path)
    page.write()
    text = (tmp_path / "run" / "report.html").read_text()
    assert "best CIDEr-D</dt><dd>60.5" in text
    assert "steps</dt><dd>30 of 40" in text, "a validation after the last step's record counts"
    for title in ("Training loss", "Validation", "Learning rate"):
        assert f'aria-label="{title} over the steps"' in text
    assert "self_critical" in text
    assert text.count('class="best"') == 1
    assert "data:image/jpeg;base64," in text
    assert key in text
    assert "Reference captions" in text
    assert text.count("a dog runs</li>") == 1, "a caption is listed only when it changes"
    assert "<b>dog" not in text
    assert "secret" not in text
    assert 'http-equiv="refresh"' in text
    (tmp_path / "run" / "summary.json").write_text("{}")
    page.write()
    assert 'http-equiv="refresh"' not in (tmp_path / "run" / "report.html").read_text()


def test_a_run_stopped_before_its_first_validation_has_a_page(tmp_path: Path) -> None:
    page, _ = write_run(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(step(10, "one", 5.0)) + "\n")
    page.write()
    assert "steps</dt><dd>10 of 40" in (tmp_path / "run" / "report.html").read_text()


def test_photos_that_are_gone_leave_the_captions(tmp_path: Path) -> None:
    page, _ = write_run(tmp_path)
    for path in (tmp_path / "shards").glob("val-*.tar"):
        path.unlink()
    page.write()
    text = (tmp_path / "run" / "report.html").read_text()
    assert "The photo could not be read" in text
    assert "a dog runs" in text


def test_nothing_is_written_before_there_is_a_record(tmp_path: Path) -> None:
    page, _ = write_run(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    page.write()
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_run_of_two_steps_names_each_step_once() -> None:
    chart = line_chart([Series("loss", [(1, 0.37), (2, 0.31)])], label="loss")
    assert [chart.count(f">{step}</text>") for step in (0, 1, 2)] == [1, 1, 1]


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert nice_ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    for low, high in ((2.13, 6.9), (0.0, 1.5e-4), (5.0, 5.0), (0.0, 0.0), (-3.0, 71.0)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high * (1 - 1e-9)
        assert 2 <= len(ticks) <= 7


def test_long_curves_are_downsampled_and_empty_ones_said() -> None:
    points = [(float(at), 2.0) for at in range(10_000)]
    assert len(downsample(points)) <= 400
    assert downsample(points)[-1] == (9999.0, 2.0)
    assert "No data" in line_chart([Series("loss", [])], label="loss")


def test_a_curve_of_one_point_is_seen() -> None:
    assert "<circle" in line_chart([Series("loss", [(20.0, 1.5)])], label="loss")
    assert "<circle" not in line_chart([Series("loss", [(float(at), 1.5) for at in range(50)])], label="loss")
