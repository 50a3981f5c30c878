"""`caption` with a failing store: transient faults, objects that cannot be read, wrong credentials."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from captioning.run.layout import RunLayout
from captioning.run.table import read_table
from captioning.storage import Location, StorageSettings
from jobs.__main__ import app
from tests.jobs.archive import encode, picture, write_photos
from tests.jobs.test_caption_run import no_pipeline, without_ray  # noqa: F401 - fixtures
from tests.s3 import s3_server
from tests.s3_faults import Faults, faulty, silent_endpoint

ROOT = Path(__file__).resolve().parents[2]
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.fixture(scope="module")
def store(tiny_captioner: Path) -> Iterator[StorageSettings]:
    """A bucket with 40 photos, a broken one, and the captioner."""
    with s3_server("archive") as storage:
        bucket = Location.parse("s3://archive", storage)
        for number in range(40):
            (bucket / "photos" / f"{number:03d}.jpg").write_bytes(encode(picture(number), "JPEG"))
        (bucket / "photos" / "040.jpg").write_bytes(encode(picture(40, (200, 150)), "JPEG")[:900])
        for path in sorted(path for path in tiny_captioner.rglob("*") if path.is_file()):
            (bucket / "captioner" / path.relative_to(tiny_captioner).as_posix()).write_bytes(path.read_bytes())
        yield storage


def caption(storage: StorageSettings, *arguments: object) -> Result:
    given = [*map(str, arguments), "--set", f"storage.endpoint={storage.endpoint}"]
    return CliRunner().invoke(app, ["caption", *given])


def rows_of(output: str, storage: StorageSettings) -> dict[str, dict]:
    layout = RunLayout(Location.parse(output, storage))
    rows = [row for batch in read_table(layout) for row in batch.to_pylist()]
    found = {row["image_id"]: row for row in rows}
    assert len(found) == len(rows), "an image has more than one row"
    return found


def errors_of(rows: dict[str, dict]) -> dict[str, str]:
    return {image_id: row["error_class"] for image_id, row in rows.items() if row["status"] == "error"}


def check_bad_day(store: StorageSettings, faults: Faults, output: str, commands: list[list[str]]) -> None:
    """Caption and verify by way of the proxy: only what truly failed has an error row."""
    faults.forbidden.add("archive/photos/007.jpg")
    faults.missing.add("archive/photos/011.jpg")
    with faulty(store, faults) as storage:
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-m", "jobs", *command, "--set", f"storage.endpoint={storage.endpoint}"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=500,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(output, store)
    assert sorted(rows) == [f"{number:03d}.jpg" for number in range(41)]
    assert errors_of(rows) == {"007.jpg": "forbidden", "011.jpg": "missing", "040.jpg": "truncated"}
    assert faults.seen["slow"] > 0
    assert sum(faults.seen[kind] for kind in ("500", "503", "reset", "cut")) > 0


@pytest.mark.usefixtures("without_ray")
def test_a_bad_day_loses_nothing(store: StorageSettings) -> None:
    faults = Faults(rate=0.1, slow_rate=0.1, forbidden={"archive/photos/007.jpg"}, missing={"archive/photos/011.jpg"})
    with faulty(store, faults) as storage:
        done = caption(
            storage,
            *("s3://archive/photos", "-o", "s3://archive/bad-day", "--model", "s3://archive/captioner"),
            *("--set", "output.shard_size=8"),
        )
        assert done.exit_code == 0, (done.output, done.exception)
        verified = CliRunner().invoke(
            app, ["verify", "s3://archive/bad-day", "--set", f"storage.endpoint={storage.endpoint}"]
        )
        assert verified.exit_code == 0, verified.output
    rows = rows_of("s3://archive/bad-day", store)
    assert sorted(rows) == [f"{number:03d}.jpg" for number in range(41)]
    assert errors_of(rows) == {"007.jpg": "forbidden", "011.jpg": "missing", "040.jpg": "truncated"}
    assert all(row["error_message"] for row in rows.values() if row["status"] == "error")
    assert faults.seen["slow"] > 0
    assert sum(faults.seen[kind] for kind in ("500", "503", "reset", "cut")) > 0


@pytest.mark.slow
def test_a_bad_day_on_a_whole_ray(store: StorageSettings) -> None:
    places = ["s3://archive/photos", "-o", "s3://archive/ray", "--model", "s3://archive/captioner"]
    commands = [["caption", *places, "--set", "output.shard_size=8"], ["verify", "s3://archive/ray"]]
    check_bad_day(store, Faults(rate=0.05, slow_rate=0.1), "s3://archive/ray", commands)


@pytest.mark.usefixtures("without_ray")
def test_keys_revoked_on_the_way_stop_the_run_and_it_goes_on_later(store: StorageSettings, tmp_path: Path) -> None:
    places = ("s3://archive/photos", "-o", tmp_path / "out", "--model", "s3://archive/captioner")
    faults = Faults()
    with faulty(store, faults) as storage:
        warm = caption(storage, *places, "--set", "output.shard_size=8", "--set", "errors.max_fraction=2")
        assert warm.exit_code == 2, "a wrong setting: only the captioner is fetched"
        faults.revoke_after = 15
        stopped = caption(storage, *places, "--set", "output.shard_size=8")
    assert stopped.exit_code == 1, (stopped.output, stopped.exception)
    assert "storage cannot be read" in stopped.stderr
    assert "finished and kept" in stopped.stderr
    done = list((tmp_path / "out" / "_run" / "staging").glob("*.parquet"))
    assert len(done) >= 1
    assert caption(store, *places).exit_code == 0
    rows = [*(tmp_path / "out").glob("part-*.parquet")]
    assert len(rows) == 1
    assert errors_of(rows_of(str(tmp_path / "out"), StorageSettings())) == {"040.jpg": "truncated"}


@pytest.mark.usefixtures("no_pipeline")
@pytest.mark.parametrize("what", ["INPUT", "OUTPUT", "model"])
@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("keys", "does not accept these credentials|Check the permissions"),
        ("no keys", "credentials"),
        ("bucket", "no such bucket|does not exist"),
        ("region", "region"),
        ("refused", "Check the network"),
        ("silent", "did not answer in time|Check the network"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_message_and_exit_2(
    store: StorageSettings, tiny_captioner: Path, tmp_path: Path, monkeypatch, what: str, trouble: str, says: str
) -> None:
    bucket = "none-such" if trouble == "bucket" else "archive"
    places = {"INPUT": str(write_photos(tmp_path / "photos", 2)), "OUTPUT": str(tmp_path / "out")}
    places["model"] = str(tiny_captioner)
    places[what] = f"s3://{bucket}/{ {'INPUT': 'photos', 'OUTPUT': 'out', 'model': 'captioner'}[what] }"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    if trouble == "no keys":
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    faults = Faults(other_region={"archive"} if trouble == "region" else set())
    faults.key_id = "another" if trouble == "keys" else "testing"
    if trouble == "silent":
        reached = silent_endpoint()
    else:
        reached = faulty(store, faults)
    with reached as storage:
        if trouble == "refused":
            storage = StorageSettings(endpoint="http://127.0.0.1:9")
        done = caption(storage, places["INPUT"], "-o", places["OUTPUT"], "--model", places["model"])
    assert done.exit_code == 2, (done.output, done.exception)
    said = " ".join(done.stderr.split())
    assert said.startswith("Error: ")
    assert any(words.lower() in said.lower() for words in says.split("|")), said
    assert places[what] in said
    assert "Traceback" not in said
    assert SECRET not in done.output
    assert not (tmp_path / "out").exists()


def test_a_password_in_the_endpoint_is_refused(tmp_path: Path) -> None:
    endpoint = "storage.endpoint=http://me:pw123@host"
    done = CliRunner().invoke(app, ["caption", str(tmp_path), "-o", str(tmp_path / "out"), "--set", endpoint])
    assert done.exit_code == 2
    assert "pw123" not in done.stderr
    assert "endpoint must not contain" in done.stderr
