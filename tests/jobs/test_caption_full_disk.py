"""A disk that fills up in the middle of a run: one message, what is finished is kept, and later it goes on."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.__main__ import app
from tests.jobs.archive import read_rows, write_photos
from tests.jobs.test_caption_run import without_ray  # noqa: F401 - a fixture


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for an index and a shard or two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def caption(photos: Path, output: Path, captioner: Path) -> Result:
    command = ["caption", str(photos), "-o", str(output), "--model", str(captioner)]
    return CliRunner().invoke(app, [*command, "--set", "output.shard_size=4"])


def check_stopped(stopped: Result, output: Path) -> int:
    assert stopped.exit_code == 1, (stopped.output, stopped.exception)
    assert "No space left" in stopped.stderr
    assert "Free some space" in stopped.stderr
    assert "finished and kept" in stopped.stderr
    assert "Traceback" not in stopped.output
    assert not list((output / "_run" / "tmp").glob("*")), "half a file was left behind"
    return len(list((output / "_run" / "staging").glob("*.parquet")))


@pytest.mark.usefixtures("without_ray")
def test_a_disk_that_is_full(tmp_path: Path, tiny_captioner: Path, small_disk: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 200), small_disk / "out"
    assert check_stopped(caption(photos, output, tiny_captioner), output) >= 1
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    done = caption(photos, output, tiny_captioner)
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(read_rows(output)) == 200


@pytest.mark.usefixtures("without_ray")
def test_a_quota_that_is_used_up(tmp_path: Path, tiny_captioner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, output = write_photos(tmp_path / "photos", 20), tmp_path / "out"
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if "/_run/tmp/" in os.readlink(f"/proc/self/fd/{descriptor}") and len(staged(output)) == 2:
            raise OSError(errno.EDQUOT, "No space left: quota exceeded")
        fsync(descriptor)

    def staged(output: Path) -> list[Path]:
        return list((output / "_run" / "staging").glob("*.parquet"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert check_stopped(caption(photos, output, tiny_captioner), output) == 2
    assert caption(photos, output, tiny_captioner).exit_code == 0
    assert len(read_rows(output)) == 20
