"""`plan`: a sample from the whole archive, a forecast, and nothing written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from captioning.run.segment import entries_to_table
from captioning.run.sources import Entry
from jobs.__main__ import app
from jobs.planning.sample import draw_sample
from tests.jobs.archive import encode, picture, write_photos


@pytest.fixture
def plan(tiny_captioner: Path, ray_local: None) -> Callable[..., Result]:
    def run(*arguments: str | Path, model: Path | None = tiny_captioner) -> Result:
        return CliRunner().invoke(app, ["plan", *map(str, arguments), *(["--model", str(model)] if model else [])])

    return run


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_a_plan_in_full_writes_nothing(tmp_path: Path, plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    photos = write_photos(tmp_path / "photos", 60)
    (photos / "broken.jpg").write_bytes(b"no picture")
    before = files(tmp_path)
    done = plan(photos, "-o", tmp_path / "out", "--price-per-hour", "2", "--json", "--set", "runtime.batch_size=4")
    assert done.exit_code == 0, done.output
    assert files(tmp_path) == before
    values = json.loads(done.stdout)
    assert (values["images"], values["pending"], values["sample"]) == (61, 61, 61)
    assert values["error_classes"] == {"not_an_image": 1}
    assert values["images_per_second"] > 0
    assert values["seconds"] > values["startup_seconds"] >= 0
    assert sum(values["stages"].values()) == pytest.approx(1, abs=0.01)
    assert set(values["batch_rates"]) == {"2", "4", "8"}
    assert values["cost"]["million"] == pytest.approx(1e6 / values["images_per_second"] / 1800, rel=0.01)
    assert values["table_bytes"] > 0
    assert values["index_bytes"] > 0


def test_a_plan_without_ray_measures_what_caption_would_take(tmp_path: Path, tiny_captioner: Path) -> None:
    photos = write_photos(tmp_path / "photos", 40)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "ray.py").write_text("raise RuntimeError('a Ray was asked for')\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "modules"), *sys.path])}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "jobs", "plan", str(photos), "--model", str(tiny_captioner), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert (values["images"], values["sample"], values["nodes"]) == (40, 40, 1)
    # A batch larger than the archive would be the same; and only Ray has decoding tasks.
    assert set(values["batch_rates"]) == {"32", "64"}
    assert set(values["settings"]) == {"runtime.actors", "runtime.batch_size"}


def test_a_plan_for_people_and_what_is_done_left_out(tmp_path: Path, plan, tiny_captioner: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 20), tmp_path / "out"
    model = ["--model", str(tiny_captioner)]
    assert CliRunner().invoke(app, ["caption", str(photos), "-o", str(output), *model]).exit_code == 0
    write_photos(photos, 5, first=20)
    before = files(tmp_path)
    done = plan(photos, "-o", output, "--sample", "9")
    assert done.exit_code == 0, done.output
    assert "25 images" in done.output
    assert "9 images from all over the archive" in done.output
    assert "5 images not yet in OUTPUT" in done.output
    assert files(tmp_path) == before


@pytest.mark.slow
def test_a_table_of_images_with_columns_that_are_kept(tmp_path: Path, plan) -> None:
    rows = [{"image": encode(picture(number), "JPEG"), "label": f"label {number}"} for number in range(24)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "photos.parquet")
    sizes = {}
    for columns in ("[]", "[label]"):
        done = plan(tmp_path / "photos.parquet", "--json", "--sample", "16", "--set", f"input.keep_columns={columns}")
        assert done.exit_code == 0, done.output
        values = json.loads(done.stdout)
        assert (values["images"], values["error_classes"]) == (24, {})
        sizes[columns] = values["table_bytes"]
    assert sizes["[label]"] > sizes["[]"]


def test_what_caption_would_refuse_is_refused(tmp_path: Path, plan, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    (tmp_path / "file").write_text("")
    refused = (["-o", tmp_path / "file"], ["-o", tmp_path / "file" / "below"], ["--set", "decoding.beams=2"])
    for arguments in refused:
        assert plan(photos, *arguments).exit_code == 2
    assert plan(tmp_path / "none").exit_code == 2
    assert plan(photos, "-o", tmp_path / "out", model=tmp_path / "none").exit_code == 2


def test_a_sample_is_from_all_over_and_always_the_same() -> None:
    entries = [Entry(f"{number:06d}.jpg", f"/a/{number:06d}.jpg", 1000 + number % 7) for number in range(30_000)]
    tables = [entries_to_table(entries[start : start + 700]) for start in range(0, 30_000, 700)]
    found = draw_sample(tables, 2000)
    assert draw_sample(tables, 2000) == found
    assert (found.images, len(found.sample)) == (30_000, 2000)
    assert found.bytes_total == sum(entry.size_bytes or 0 for entry in entries)
    for first in (found.sample, found.sample[:500]):
        tenths = [0] * 10
        for entry in first:
            tenths[int(entry.image_id[:6]) // 3000] += 1
        assert min(tenths) > len(first) / 10 * 0.6
    assert len({entry.image_id for entry in found.sample}) == 2000
    assert 100_000 < found.index_bytes < 3_000_000


def test_sizes_that_the_listing_does_not_tell_are_taken_as_the_others() -> None:
    entries = [Entry("a", "/a", 100), Entry("b", "/b", None), Entry("c", "/c", 300)]
    assert draw_sample([entries_to_table(entries)], 10).bytes_total == 600
    assert draw_sample([entries_to_table([Entry("b", "/b", None)])], 10).bytes_total is None
