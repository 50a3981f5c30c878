"""`caption` through Ray Data itself, and killed outright."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import ray
from typer.testing import CliRunner

from captioning.captioner_info import inspect_captioner
from captioning.errors import UnfinishedError
from captioning.run.index import write_segment
from captioning.run.layout import RunLayout
from captioning.run.shard_io import IndexShardIO
from captioning.run.sources import open_sources
from captioning.run.staging import staged_shards
from captioning.storage import Location, StorageSettings
from jobs.__main__ import app
from jobs.caption_settings import RuntimeSettings
from jobs.runners.pipeline import caption_shards, cluster_nodes
from jobs.runners.pools import plan_pools
from jobs.runners.work import Work
from tests.jobs.archive import assert_same_table, read_rows, write_odd_files, write_photos

ROOT = Path(__file__).resolve().parents[2]


class Broken:
    """A captioner that fails whatever it is shown."""

    name = "broken-00000000"

    def caption_pixels(self, pixels: np.ndarray, *, batch_size: int) -> Sequence[object]:
        raise RuntimeError("the weights are nonsense")


@pytest.mark.usefixtures("ray_local")
def test_odd_files_among_photos_all_get_their_row(tmp_path: Path, tiny_captioner: Path) -> None:
    sizes, classes = write_odd_files(tmp_path / "archive")
    write_photos(tmp_path / "archive", 15)
    output = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["caption", str(tmp_path / "archive"), "-o", str(output), "--model", str(tiny_captioner)]
    )
    assert done.exit_code == 0, done.output
    rows = read_rows(output)
    assert len(rows) == 24
    for name, (width, height) in sizes.items():
        assert (rows[name]["status"], rows[name]["width"], rows[name]["height"]) == ("ok", width, height)
        assert rows[name]["caption"]
    for name, error_class in classes.items():
        assert (rows[name]["status"], rows[name]["error_class"]) == ("error", error_class)
        assert rows[name]["error_message"]
    summary = json.loads((output / "_run" / "summary.json").read_text())
    assert summary.items() >= {"inputs": 24, "captioned": 20, "errors": 4, "already_done": 0}.items()
    # Ray reads the table, and nothing of what is in _run.
    assert {row["image_id"] for row in ray.data.read_parquet(str(output)).take_all()} == rows.keys()


class Deadly(Broken):
    """A captioner whose process ends, as one does that runs out of memory."""

    def caption_pixels(self, pixels: np.ndarray, *, batch_size: int) -> Sequence[object]:
        os._exit(1)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("load", "says"),
    [
        (Broken, "fails on every image: RuntimeError: the weights are nonsense"),
        (Deadly, "The captioner's process fails on every image"),
    ],
)
def test_a_captioner_that_never_works_is_one_clear_error(tmp_path: Path, tiny_captioner: Path, load, says) -> None:
    layout = RunLayout(Location.parse(str(tmp_path / "out")))
    sources = open_sources([str(write_photos(tmp_path / "photos", 4))])
    index = write_segment(layout, sources, shard_size=2).commit()
    work = Work(
        IndexShardIO(index), inspect_captioner(str(tiny_captioner)).preprocess, StorageSettings(), load, max_retries=1
    )
    pools = plan_pools(RuntimeSettings(actors=1), cluster_nodes(), shards=2)
    with pytest.raises(UnfinishedError, match=says):
        list(caption_shards(work, pools, [0, 1]))
    assert staged_shards(layout) == set()


@pytest.mark.slow
def test_a_run_killed_three_times_gives_the_table_of_one_left_alone(tmp_path: Path, tiny_captioner: Path) -> None:
    photos = write_photos(tmp_path / "photos", 240)
    command = [sys.executable, "-m", "jobs", "caption", str(photos), "--model", str(tiny_captioner)]
    command += ["--set", "output.shard_size=4", "--set", "runtime.batch_size=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, output = tmp_path / "whole", tmp_path / "out"
    subprocess.run([*command, "-o", str(whole)], cwd=ROOT, env=environment, check=True)
    kept: set[str] = set()
    for wanted in (1, 15, 35):
        process = subprocess.Popen([*command, "-o", str(output)], cwd=ROOT, env=environment, start_new_session=True)
        wait_for_staged(output, wanted, process)
        kill_all(process)
        found = {path.name for path in (output / "_run" / "staging").glob("*.parquet")}
        assert kept <= found, "finished shards were lost"
        kept = found
    subprocess.run([*command, "-o", str(output)], cwd=ROOT, env=environment, check=True)
    summary = json.loads((output / "_run" / "summary.json").read_text())
    assert summary["already_done"] >= 4 * len(kept)
    assert_same_table(read_rows(whole), read_rows(output))


@pytest.mark.slow
def test_a_run_told_to_end_ends_with_130_and_keeps_what_is_finished(tmp_path: Path, tiny_captioner: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 240), tmp_path / "out"
    command = [sys.executable, "-m", "jobs", "caption", str(photos), "--model", str(tiny_captioner), "-o", str(output)]
    command += ["--set", "output.shard_size=4", "--set", "runtime.batch_size=1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for_staged(output, 3, process)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Run the same command again to resume." in said
    assert "Traceback" not in said
    assert len(list((output / "_run" / "staging").glob("*.parquet"))) >= 3


def wait_for_staged(output: Path, wanted: int, process: subprocess.Popen) -> None:
    """Until so many staged files are there, or the run has ended by itself."""
    while process.poll() is None and len(list((output / "_run" / "staging").glob("*.parquet"))) < wanted:
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL the driver and every process below it, its Ray among them."""
    family = [process.pid, *descendants(process.pid)]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    while any(is_running(pid) for pid in family):
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    parents = {int(path.name): parent for path in Path("/proc").glob("[0-9]*") if (parent := status(path, "PPid"))}
    found, at = [], [pid]
    while at:
        at = [child for child, parent in parents.items() if int(parent) in at]
        found += at
    return found


def is_running(pid: int) -> bool:
    state = status(Path("/proc") / str(pid), "State")
    return state is not None and not state.startswith(("Z", "X"))


def status(process: Path, key: str) -> str | None:
    """A line of /proc/PID/status; None for a process that is gone."""
    with contextlib.suppress(OSError):
        for line in (process / "status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return line.partition(":")[2].strip()
    return None
