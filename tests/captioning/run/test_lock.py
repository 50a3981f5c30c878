"""The lock of an OUTPUT: one driver at a time, and the takeover of a dead driver's lock."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from captioning.conditional_file import ConditionalFile
from captioning.errors import RunLockedError
from captioning.remote_files import RemoteFiles
from captioning.run.layout import RunLayout
from captioning.run.lock import LockOwner, RunLock, command_line, lock_owner
from captioning.run.process import ProcessId, start_time
from captioning.storage import Location
from tests.captioning.run.runs import layout_of
from tests.s3 import s3_server

ROOT = Path(__file__).resolve().parents[3]
OWNER = """
import os, sys
from captioning.run.lock import RunLock
from captioning.run.layout import RunLayout
from captioning.storage import Location
lock = RunLock(RunLayout(Location.parse(sys.argv[1])), notify=print, command="caption photos")
lock.__enter__()
print("held", flush=True)
sys.stdin.readline()
os._exit(9)
"""


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def take(said: list[str]) -> Callable[..., RunLock]:
    def make(layout: RunLayout, command: str = "caption here", **options: float) -> RunLock:
        return RunLock(layout, notify=said.append, command=command, **{"heartbeat": 0.02, "timeout": 0.4, **options})

    return make


def start_owner(output: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(output)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def write(layout: RunLayout, **changes: object) -> LockOwner:
    """Write the lock of another driver."""
    other = replace(LockOwner.current("caption elsewhere"), token="other", **changes)
    layout.lock_file.write_bytes(other.to_json(), temp=layout.tmp_dir)
    return other


def test_a_lock_names_its_owner_until_it_is_released(tmp_path: Path, take) -> None:
    layout = layout_of(tmp_path)
    assert lock_owner(layout) is None
    with take(layout, "caption photos") as lock:
        mine = lock_owner(layout)
        assert mine == lock.owner
        assert (mine.pid, mine.command, mine.alive()) == (os.getpid(), "caption photos", True)
        lock.check()
        with pytest.raises(RunLockedError, match=f"process {os.getpid()} on .*: caption photos"):
            take(layout).__enter__()
        assert lock_owner(layout) == mine
    assert lock_owner(layout) is None
    assert layout.tmp_dir.names() == []
    with take(layout):
        assert lock_owner(layout) is not None


def test_the_lock_of_a_dead_local_process_is_taken_over_at_once(tmp_path: Path, take, said: list[str]) -> None:
    layout, process = layout_of(tmp_path), start_owner(tmp_path)
    with pytest.raises(RunLockedError, match=rf"process {process.pid} on .*: caption photos\).*kill {process.pid}"):
        take(layout, timeout=500).__enter__()
    process.kill()
    # Not waited for: it is a zombie, which has a process id and does nothing any more.
    while lock_owner(layout).alive():
        time.sleep(0.01)
    with take(layout, timeout=500) as lock:
        assert lock_owner(layout) == lock.owner
    assert len(said) == 1
    assert said[0].startswith(f"Process {process.pid} on ")
    assert said[0].endswith("is dead; this driver takes over.")
    process.communicate()


def test_a_reused_process_id_is_not_the_owner(tmp_path: Path, take) -> None:
    layout = layout_of(tmp_path)
    other = write(layout, started=start_time(os.getpid()) - 1)
    assert other.alive() is False
    with take(layout, timeout=500) as lock:
        assert lock_owner(layout) == lock.owner


@pytest.mark.parametrize("changes", [{"machine": "another boot"}, {"machine": ""}, {"started": None}])
def test_a_lock_from_elsewhere_is_taken_over_after_the_timeout(
    tmp_path: Path, take, said: list[str], changes: dict[str, object]
) -> None:
    layout = layout_of(tmp_path)
    assert write(layout, **changes, host="afar").alive() is None
    with take(layout) as lock:
        assert lock_owner(layout) == lock.owner
    assert "cannot be checked from here. Waiting up to 0.4 s" in said[0]
    assert "on afar" in said[1]
    assert said[1].endswith("has given no sign of life for 0.4 s; this driver takes over.")


def test_a_lock_from_elsewhere_with_a_heartbeat_is_respected(
    tmp_path: Path, take, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(tmp_path)
    with take(layout, "caption afar") as afar, monkeypatch.context() as patch:
        patch.setattr(ProcessId, "alive", lambda self: None)
        with pytest.raises(RunLockedError, match="caption afar"):
            take(layout, timeout=500).__enter__()
        afar.check()
        assert lock_owner(layout) == afar.owner


def test_a_lock_released_during_the_wait_is_acquired(tmp_path: Path, take, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(tmp_path)
    write(layout, machine="elsewhere")
    monkeypatch.setattr(time, "sleep", lambda seconds: layout.lock_file.delete())
    with take(layout, timeout=500) as lock:
        assert lock_owner(layout) == lock.owner


def test_a_damaged_lock_is_taken_over_after_the_timeout(tmp_path: Path, take, said: list[str]) -> None:
    layout = layout_of(tmp_path)
    layout.lock_file.write_bytes(b"{")
    with take(layout) as lock:
        assert lock_owner(layout) == lock.owner
    assert said[1].startswith("An unknown process has given no sign")


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.005)


def test_a_driver_that_lost_its_lock_raises_and_leaves_the_new_one(tmp_path: Path, take) -> None:
    layout = layout_of(tmp_path)
    with take(layout) as lock:
        other = write(layout)
        until(lock._lost.is_set)
        with pytest.raises(RunLockedError, match="Another driver has taken over .*caption elsewhere"):
            lock.check()
    assert lock_owner(layout) == other


def test_a_deleted_lock_is_written_again(tmp_path: Path, take) -> None:
    layout = layout_of(tmp_path)
    with take(layout) as lock:
        layout.lock_file.delete()
        until(lambda: lock_owner(layout) is not None)
        assert lock_owner(layout) == lock.owner
        lock.check()


def test_a_lock_is_acquired_even_if_the_response_is_lost(tmp_path: Path, take, monkeypatch: pytest.MonkeyPatch) -> None:
    create = ConditionalFile.create

    def lost(file: ConditionalFile, data: bytes) -> None:
        create(file, data)

    monkeypatch.setattr(ConditionalFile, "create", lost)
    with take(layout_of(tmp_path)) as held:
        assert held.is_held
        assert lock_owner(held.layout) == held.owner


def test_of_many_concurrent_takeovers_one_succeeds(tmp_path: Path, take) -> None:
    layout = layout_of(tmp_path)
    for _ in range(10):
        write(layout, started=0)
        won: list[RunLock] = []
        refused: list[RunLockedError] = []
        start = threading.Barrier(6)

        def run(start=start, won=won, refused=refused) -> None:
            lock = take(layout, heartbeat=100)
            start.wait()
            try:
                won.append(lock.__enter__())
            except RunLockedError as error:
                refused.append(error)

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(refused)) == (1, 5)
        assert lock_owner(layout) == won[0].owner
        won[0]._heartbeat = 0
        won[0].__exit__(None, None, None)
        assert lock_owner(layout) is None


def test_a_bucket_is_locked_by_conditional_writes(take, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server("archive") as storage:
        layout = RunLayout(Location.parse("s3://archive/out", storage))
        with take(layout, "caption photos") as lock:
            with pytest.raises(RunLockedError, match="caption photos"):
                take(layout).__enter__()
            first = json.loads(layout.lock_file.read_bytes())["beat"]
            until(lambda: json.loads(layout.lock_file.read_bytes())["beat"] > first)
            with monkeypatch.context() as patch:
                patch.setattr(ProcessId, "alive", lambda self: None)
                with pytest.raises(RunLockedError, match="caption photos"):
                    take(layout, timeout=500).__enter__()
            lock.check()
        assert lock_owner(layout) is None
        write(layout, started=0)
        with take(layout) as lock:
            assert lock_owner(layout) == lock.owner
            other = write(layout)
            until(lock._lost.is_set)
        assert lock_owner(layout) == other
    assert not [line for line in said if "conditional" in line]


@pytest.mark.parametrize("answer", ["ignores", "refuses"])
def test_a_store_without_conditional_writes_is_reported_once(
    take, said: list[str], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def put_if(files: RemoteFiles, uri: str, data: bytes, version: str | None) -> str:
        if answer == "refuses":
            raise OSError("A header you provided implies functionality that is not implemented")
        files.write(uri, data, None)
        return files.info(uri).version

    monkeypatch.setattr(RemoteFiles, "put_if", put_if)
    with s3_server("archive") as storage:
        layout = RunLayout(Location.parse("s3://archive/out", storage))
        with take(layout) as lock:
            first = json.loads(layout.lock_file.read_bytes())["beat"]
            until(lambda: json.loads(layout.lock_file.read_bytes())["beat"] > first)
            lock.check()
            assert lock_owner(layout) == lock.owner
        assert lock_owner(layout) is None
    assert len([line for line in said if "does not support conditional writes" in line]) == 1


def test_the_command_is_shown_without_secrets() -> None:
    said = command_line(
        ["/code/jobs/__main__.py", "caption", "https://ann:pw@host/a.jpg?X-Amz-Signature=abc", "my photos", "-o", "out"]
    )
    assert said == "python -m jobs caption 'https://***@host/a.jpg?X-Amz-Signature=***' 'my photos' -o out"
    assert len(command_line(["x" * 9999])) == 500
