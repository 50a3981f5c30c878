"""A remote checkpoint is fetched once a machine, even when many processes want it and some die."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from captioning.refs import resolve

#: Notes each fetch, slowly, so that others come in between; may die in the midst of one.
FETCHER = """
import os, sys, time
from captioning import refs
from captioning.storage import Location

log, dies = sys.argv[2], sys.argv[3] == "dies"
download = Location.download

def slowly(self, folder):
    with open(log, "a") as file:
        file.write("fetch\\n")
    time.sleep(0.5)
    download(self, folder)
    if dies:
        os._exit(9)

Location.download = slowly
print(refs.resolve(sys.argv[1])[1])
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint's URI, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(100_000))
    return folder.as_uri()


def fetcher(uri: str, log: Path, how: str = "lives") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCHER, uri, str(log), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy())


def test_many_processes_fetch_it_once(tmp_path: Path, elsewhere: str) -> None:
    log = tmp_path / "log"
    crowd = [fetcher(elsewhere, log) for _ in range(4)]
    folders = {process.communicate()[0].strip() for process in crowd}
    assert [process.returncode for process in crowd] == [0] * 4
    assert log.read_text() == "fetch\n"
    (folder,) = folders
    assert sorted(path.name for path in Path(folder).iterdir()) == [".complete", "config.json", "model.safetensors"]
    assert (Path(folder) / "model.safetensors").stat().st_size == 100_000
    resolve(elsewhere)
    assert log.read_text() == "fetch\n"


def test_an_interrupted_fetch_is_repeated(tmp_path: Path, elsewhere: str) -> None:
    log = tmp_path / "log"
    first = fetcher(elsewhere, log, "dies")
    for _ in range(600):
        if log.exists():
            break
        time.sleep(0.05)
    second = fetcher(elsewhere, log)  # waits for the first, and finds it dead
    assert second.communicate(timeout=60)[0].strip()
    assert first.wait() == 9
    assert log.read_text() == "fetch\nfetch\n"


def test_a_changed_checkpoint_is_fetched_again(tmp_path: Path, elsewhere: str) -> None:
    before = resolve(elsewhere)[1]
    time.sleep(0.01)
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(b"new")
    after = resolve(elsewhere)[1]
    assert after != before
    assert (after / "model.safetensors").read_bytes() == b"new"
