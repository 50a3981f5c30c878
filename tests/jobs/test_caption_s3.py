"""`caption` from a bucket into a bucket, with a captioner from a bucket."""

import subprocess
import sys
from pathlib import Path

import pytest

from captioning.run.layout import RunLayout
from captioning.run.table import read_table
from captioning.storage import Location
from tests.jobs.archive import write_odd_files, write_photos
from tests.s3 import s3_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_an_archive_on_s3(tiny_captioner: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 20)
    _, classes = write_odd_files(tmp_path / "photos" / "odd")
    with s3_server("archive") as storage:
        bucket = Location.parse("s3://archive", storage)
        for folder, name in ((tmp_path / "photos", "photos"), (tiny_captioner, "captioner")):
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                (bucket / name / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
        command = [
            *(sys.executable, "-m", "jobs", "caption", "s3://archive/photos", "-o", "s3://archive/captions"),
            *("--model", "s3://archive/captioner", "--set", f"storage.endpoint={storage.endpoint}"),
            *("--set", "output.shard_size=8"),
        ]
        for said in ("29 images", "Nothing to do"):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert said in done.stdout + done.stderr
        layout = RunLayout(bucket / "captions")
        rows = {row["image_id"]: row for batch in read_table(layout) for row in batch.to_pylist()}
        verified = subprocess.run(
            [
                *(sys.executable, "-m", "jobs", "verify", "s3://archive/captions"),
                *("--set", f"storage.endpoint={storage.endpoint}"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert len(rows) == 29
    assert {row["error_class"] for row in rows.values() if row["status"] == "error"} == set(classes.values())
