"""The runner without Ray: the same code and the same table, in local processes."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from captioning import errors
from captioning.data.preprocess import PreprocessSettings
from captioning.errors import CaptioningError, ImageError, SettingsError, StorageError, UnfinishedError
from captioning.run.index import Index, write_segment
from captioning.run.layout import RunLayout
from captioning.run.shard_io import IndexShardIO
from captioning.run.sources import Entry, open_sources
from captioning.run.staging import staged_shards
from captioning.storage import Location, StorageSettings
from jobs.caption_settings import RuntimeSettings
from jobs.runners import choice
from jobs.runners.choice import MAX_LOCAL_IMAGES, runs_locally
from jobs.runners.local import LocalRunner
from jobs.runners.pools import plan_pools
from jobs.runners.work import ShardResult, Work, error_from_json, error_to_json
from tests.jobs.archive import assert_same_table, read_rows, write_odd_files, write_photos
from tests.jobs.captioners import Moody
from tests.jobs.test_caption import Broken, Deadly

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.usefixtures("ray_local")
def test_a_small_job_gives_the_table_that_ray_gives(tmp_path: Path, tiny_captioner: Path) -> None:
    _, classes = write_odd_files(tmp_path / "photos")
    write_photos(tmp_path / "photos", 30)
    tables = {}
    for name in ("ray", "local"):
        chosen = ("--model", tiny_captioner, "--set", f"runtime.runner={name}")
        done = command("caption", tmp_path / "photos", "-o", tmp_path / name, *chosen)
        assert done.returncode == 0, done.stderr
        tables[name] = read_rows(tmp_path / name)
    assert len(tables["local"]) == 39
    assert {key: row["error_class"] for key, row in tables["local"].items() if row["error_class"]} == classes
    assert_same_table(tables["ray"], tables["local"])
    again = command("caption", tmp_path / "photos", "-o", tmp_path / "ray", "--model", tiny_captioner)
    assert again.stdout.startswith("Nothing to do"), again.stdout + again.stderr


def test_a_small_job_imports_no_ray_in_its_driver(tmp_path: Path, tiny_captioner: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    code = (
        "import sys; from typer.testing import CliRunner; from jobs.__main__ import app;"
        f"done = CliRunner().invoke(app, ['caption', {str(photos)!r}, '-o', {str(tmp_path / 'out')!r}, '--model',"
        f"{str(tiny_captioner)!r}, '--set', 'runtime.device=cpu']);"
        "print(done.output); sys.exit(done.exit_code or 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(read_rows(tmp_path / "out")) == 3


@dataclass(frozen=True)
class LostBook(IndexShardIO):
    """A `ShardIO` whose store is lost from shard 1 on."""

    def entries(self, shard: int) -> list[Entry]:
        if shard:
            raise StorageError("no_space", "The disk is full.", transient=True)
        return super().entries(shard)


@dataclass(frozen=True)
class BuggyBook(IndexShardIO):
    """A `ShardIO` with a bug."""

    def entries(self, shard: int) -> list[Entry]:
        return [] / shard  # type: ignore[operator, no-any-return]


def make_index(folder: Path, photos: int) -> Index:
    layout = RunLayout(Location.parse(str(folder / "out")))
    sources = open_sources([str(write_photos(folder / "photos", photos))])
    return write_segment(layout, sources, shard_size=2).commit()


def caption(work: Work, index: Index) -> list[ShardResult]:
    with LocalRunner() as local:
        pools = plan_pools(RuntimeSettings(actors=1), local.nodes(), shards=9)
        return list(local.caption_shards(work, pools, [shard.number for shard in index.shards()]))


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (Broken, "fails on every image: RuntimeError: the weights are nonsense"),
        (Deadly, "The captioner's process fails on every image"),
    ],
)
def test_a_captioner_that_never_works_is_one_clear_error(tmp_path: Path, load: type, says: str) -> None:
    index = make_index(tmp_path, 4)
    work = Work(IndexShardIO(index), PreprocessSettings(size=8), StorageSettings(), load, max_retries=1)
    with pytest.raises(UnfinishedError, match=says):
        caption(work, index)
    assert staged_shards(index.layout) == set()


def test_a_store_that_is_lost_ends_the_run_and_what_is_finished_is_kept(tmp_path: Path) -> None:
    index = make_index(tmp_path, 6)
    work = Work(LostBook(index), PreprocessSettings(size=8), StorageSettings(), Moody(), max_retries=1)
    with pytest.raises(StorageError, match=r"The disk is full\.") as caught:
        caption(work, index)
    assert (caught.value.error_class, caught.value.transient) == ("no_space", True)
    assert staged_shards(index.layout) == {0}


def test_a_bug_in_decoding_ends_the_run_with_its_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = make_index(tmp_path, 2)
    work = Work(BuggyBook(index), PreprocessSettings(size=8), StorageSettings(), Moody(), max_retries=1)
    with pytest.raises(RuntimeError, match="traceback is above: TypeError"):
        caption(work, index)
    assert "return [] / shard" in capfd.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        StorageError("throttled", "Slow down.", transient=True),
        ImageError("empty", "Nothing in it."),
        *(
            kind("What, where, and what to do.")
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, CaptioningError) and kind not in (StorageError, ImageError)
        ),
    ],
)
def test_errors_of_workers_survive_json(error: CaptioningError) -> None:
    again = error_from_json(json.loads(json.dumps(error_to_json(error))))
    assert type(again) is type(error)
    assert again is not None
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_a_bug_in_a_worker_is_not_a_user_error() -> None:
    found = error_from_json(error_to_json(KeyError("shard")))
    assert isinstance(found, RuntimeError)
    assert "KeyError: 'shard'" in str(found)
    assert error_from_json({"shard": 1, "images": 2}) is None


def test_small_jobs_run_locally_without_a_cluster_or_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_gpu", lambda: False)
    monkeypatch.setattr(choice, "_has_ray", lambda: False)
    auto = RuntimeSettings()
    assert runs_locally(auto, MAX_LOCAL_IMAGES)
    assert not runs_locally(auto, MAX_LOCAL_IMAGES + 1)
    assert not runs_locally(auto, None)
    assert runs_locally(RuntimeSettings(runner="local"), None)
    assert not runs_locally(RuntimeSettings(runner="ray"), 1)
    assert not runs_locally(RuntimeSettings(device="cuda"), 1)
    assert not runs_locally(RuntimeSettings(gpus_per_actor=0.5), 1)
    assert not runs_locally(RuntimeSettings(decode_tasks=3), 1)
    with pytest.raises(SettingsError, match=r"runtime\.runner is local"):
        runs_locally(RuntimeSettings(runner="local", device="cuda"), 1)
    monkeypatch.setattr(choice, "has_gpu", lambda: True)
    assert not runs_locally(auto, 1)
    assert runs_locally(RuntimeSettings(device="cpu"), 1)
    monkeypatch.setattr(choice, "_has_ray", lambda: True)
    assert not runs_locally(RuntimeSettings(device="cpu"), 1)
    monkeypatch.setattr(choice, "_has_ray", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not runs_locally(RuntimeSettings(device="cpu"), 1)
