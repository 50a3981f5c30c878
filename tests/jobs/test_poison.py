"""Poisoned photos through the whole of `caption`: Ray, its tasks and actors, and all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from captioning.data.preprocess import PreprocessSettings
from captioning.errors import UnfinishedError
from captioning.run.index import write_segment
from captioning.run.layout import RunLayout
from captioning.run.shard_io import IndexShardIO
from captioning.run.sources import open_sources
from captioning.run.staging import staged_shards
from captioning.storage import Location, StorageSettings
from jobs.caption_settings import RuntimeSettings
from jobs.runners.pipeline import caption_shards, cluster_nodes
from jobs.runners.pools import plan_pools
from jobs.runners.work import Work
from jobs.workers.decode_shard import decode_entries, pixels_of
from tests.jobs.archive import read_rows, write_photos
from tests.jobs.captioners import Moody
from tests.jobs.poison import ORDERS, obedient_decoders, poisoned

ROOT = Path(__file__).resolve().parents[2]


def test_five_poisoned_photos_are_five_rows_and_the_job_goes_on(tmp_path: Path, tiny_captioner: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 40), tmp_path / "out"
    for number, order in enumerate(ORDERS):
        (photos / str(number % 2) / f"{order}.jpg").write_bytes(poisoned(order, number))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([obedient_decoders(tmp_path / "site"), str(ROOT)])}
    command = [sys.executable, "-m", "jobs", "caption", str(photos), "-o", str(output), "--model", str(tiny_captioner)]
    command += ["--set", "output.shard_size=8", "--set", "decode.timeout_s=5", "--set", "decode.memory_mb=400"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(output)
    assert len(rows) == 45
    failed = {Path(image_id).stem: row["error_class"] for image_id, row in rows.items() if row["status"] == "error"}
    assert failed == ORDERS
    assert all(row["caption"] for row in rows.values() if row["status"] == "ok")
    summary = json.loads((output / "_run" / "summary.json").read_text())
    assert summary["error_classes"] == {"crash": 3, "hang": 1, "memory": 1}


@pytest.mark.usefixtures("ray_local")
def test_photos_that_end_the_captioner_are_rows_and_the_job_goes_on(tmp_path: Path) -> None:
    layout = RunLayout(Location.parse(str(tmp_path / "out")))
    sources = open_sources([str(write_photos(tmp_path / "photos", 12))])
    index = write_segment(layout, sources, shard_size=4).commit()
    preprocess = PreprocessSettings(size=8)
    marks = {}
    for shard in index.shards():
        entries = index.rows(shard)
        pixels = pixels_of(decode_entries(shard.number, entries, preprocess, StorageSettings()))
        marks |= {entry.image_id: int(image[0, 0, 0]) for entry, image in zip(entries, pixels, strict=True)}
    deadly = marks["0/0002.jpg"]
    assert list(marks.values()).count(deadly) == 1, "another photo of the same mark: choose another"
    work = Work(IndexShardIO(index), preprocess, StorageSettings(), Moody(deadly=[deadly]), max_retries=1)
    pools = plan_pools(RuntimeSettings(actors=1), cluster_nodes(), shards=3)
    results = list(caption_shards(work, pools, [shard.number for shard in index.shards()]))
    assert staged_shards(layout) == {0, 1, 2}
    assert sum(result.images for result in results) == 12
    assert [result.error_classes for result in results if result.errors] == [{"crash": 1}]


class NeverLoads(Moody):
    """A captioner whose process ends while it is loaded, as one does that does not fit."""

    def __call__(self) -> Moody:
        os._exit(9)


@pytest.mark.usefixtures("ray_local")
def test_a_captioner_that_ends_its_process_while_it_loads_is_one_error(tmp_path: Path) -> None:
    layout = RunLayout(Location.parse(str(tmp_path / "out")))
    index = write_segment(layout, open_sources([str(write_photos(tmp_path / "photos", 2))]), shard_size=2).commit()
    work = Work(IndexShardIO(index), PreprocessSettings(size=8), StorageSettings(), NeverLoads(), max_retries=1)
    pools = plan_pools(RuntimeSettings(actors=1), cluster_nodes(), shards=1)
    with pytest.raises(UnfinishedError, match="died .* times while loading"):
        list(caption_shards(work, pools, [shard.number for shard in index.shards()]))
