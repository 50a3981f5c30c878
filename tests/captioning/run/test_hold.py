"""One driver at a time: who holds an OUTPUT, and what becomes of a dead one's hold."""

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

from captioning.errors import HeldError
from captioning.remote_files import RemoteFiles
from captioning.run.hold import Hold, Holder, command_line, holder
from captioning.run.layout import RunLayout
from captioning.run.process import ProcessId, start_of
from captioning.storage import Location
from captioning.swap import SwapFile
from tests.captioning.run.runs import layout_of
from tests.s3 import s3_server

ROOT = Path(__file__).resolve().parents[3]
HOLDING = """
import os, sys
from captioning.run.hold import Hold
from captioning.run.layout import RunLayout
from captioning.storage import Location
hold = Hold(RunLayout(Location.parse(sys.argv[1])), say=print, command="caption photos")
hold.__enter__()
print("held", flush=True)
sys.stdin.readline()
os._exit(9)
"""


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def take(said: list[str]) -> Callable[..., Hold]:
    def make(layout: RunLayout, command: str = "caption here", **options: float) -> Hold:
        return Hold(layout, say=said.append, command=command, **{"beat": 0.02, "silence": 0.4, **options})

    return make


def start_holder(output: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(output)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def write(layout: RunLayout, **changes: object) -> Holder:
    """The hold of somebody else."""
    other = replace(Holder.mine("caption elsewhere"), token="other", **changes)
    layout.hold.write_bytes(other.to_json(), temp=layout.tmp_dir)
    return other


def test_a_hold_says_who_and_goes_with_its_end(tmp_path: Path, take) -> None:
    layout = layout_of(tmp_path)
    assert holder(layout) is None
    with take(layout, "caption photos") as hold:
        mine = holder(layout)
        assert mine == hold.me
        assert (mine.pid, mine.command, mine.alive()) == (os.getpid(), "caption photos", True)
        hold.check()
        with pytest.raises(HeldError, match=f"process {os.getpid()} on .*: caption photos"):
            take(layout).__enter__()
        assert holder(layout) == mine
    assert holder(layout) is None
    assert layout.tmp_dir.names() == []
    with take(layout):
        assert holder(layout) is not None


def test_of_a_process_here_it_is_known_at_once_whether_it_lives(tmp_path: Path, take, said: list[str]) -> None:
    layout, process = layout_of(tmp_path), start_holder(tmp_path)
    with pytest.raises(HeldError, match=rf"process {process.pid} on .*: caption photos\).*kill {process.pid}"):
        take(layout, silence=500).__enter__()
    process.kill()
    # Not waited for: it is a zombie, which has a process id and does nothing any more.
    while holder(layout).alive():
        time.sleep(0.01)
    with take(layout, silence=500) as hold:
        assert holder(layout) == hold.me
    assert len(said) == 1
    assert said[0].startswith(f"Process {process.pid} on ")
    assert said[0].endswith("is dead; this driver takes over.")
    process.communicate()


def test_a_process_id_that_was_given_again_is_not_the_holder(tmp_path: Path, take) -> None:
    layout = layout_of(tmp_path)
    other = write(layout, started=start_of(os.getpid()) - 1)
    assert other.alive() is False
    with take(layout, silence=500) as hold:
        assert holder(layout) == hold.me


@pytest.mark.parametrize("changes", [{"machine": "another boot"}, {"machine": ""}, {"started": None}])
def test_what_cannot_be_seen_from_here_is_taken_over_when_it_is_silent(
    tmp_path: Path, take, said: list[str], changes: dict[str, object]
) -> None:
    layout = layout_of(tmp_path)
    assert write(layout, **changes, host="afar").alive() is None
    with take(layout) as hold:
        assert holder(layout) == hold.me
    assert "is not to be seen from here. Waiting up to 0.4 s" in said[0]
    assert "on afar" in said[1]
    assert said[1].endswith("has given no sign of life for 0.4 s; this driver takes over.")


def test_what_lives_elsewhere_is_left_alone(tmp_path: Path, take, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(tmp_path)
    with take(layout, "caption afar") as afar, monkeypatch.context() as patch:
        patch.setattr(ProcessId, "alive", lambda self: None)
        with pytest.raises(HeldError, match="caption afar"):
            take(layout, silence=500).__enter__()
        afar.check()
        assert holder(layout) == afar.me


def test_a_hold_that_ends_while_one_waits_is_free(tmp_path: Path, take, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(tmp_path)
    write(layout, machine="elsewhere")
    monkeypatch.setattr(time, "sleep", lambda seconds: layout.hold.delete())
    with take(layout, silence=500) as hold:
        assert holder(layout) == hold.me


def test_damage_is_waited_for_and_then_taken_over(tmp_path: Path, take, said: list[str]) -> None:
    layout = layout_of(tmp_path)
    layout.hold.write_bytes(b"{")
    with take(layout) as hold:
        assert holder(layout) == hold.me
    assert said[1].startswith("An unknown process has given no sign")


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.005)


def test_a_driver_that_lost_its_hold_is_told_and_leaves_the_new_one(tmp_path: Path, take) -> None:
    layout = layout_of(tmp_path)
    with take(layout) as hold:
        other = write(layout)
        until(hold._lost.is_set)
        with pytest.raises(HeldError, match="Another driver has taken over .*caption elsewhere"):
            hold.check()
    assert holder(layout) == other


def test_a_hold_that_somebody_removed_is_written_again(tmp_path: Path, take) -> None:
    layout = layout_of(tmp_path)
    with take(layout) as hold:
        layout.hold.delete()
        until(lambda: holder(layout) is not None)
        assert holder(layout) == hold.me
        hold.check()


def test_a_hold_whose_answer_got_lost_is_ones_own(tmp_path: Path, take, monkeypatch: pytest.MonkeyPatch) -> None:
    create = SwapFile.create

    def lost(file: SwapFile, data: bytes) -> None:
        create(file, data)

    monkeypatch.setattr(SwapFile, "create", lost)
    with take(layout_of(tmp_path)) as held:
        assert held.held
        assert holder(held.layout) == held.me


def test_of_many_that_take_over_at_once_one_succeeds(tmp_path: Path, take) -> None:
    layout = layout_of(tmp_path)
    for _ in range(10):
        write(layout, started=0)
        won: list[Hold] = []
        refused: list[HeldError] = []
        start = threading.Barrier(6)

        def run(start=start, won=won, refused=refused) -> None:
            hold = take(layout, beat=100)
            start.wait()
            try:
                won.append(hold.__enter__())
            except HeldError as error:
                refused.append(error)

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(refused)) == (1, 5)
        assert holder(layout) == won[0].me
        won[0]._beat = 0
        won[0].__exit__(None, None, None)
        assert holder(layout) is None


def test_a_bucket_is_held_by_conditional_writes(take, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server("archive") as storage:
        layout = RunLayout(Location.parse("s3://archive/out", storage))
        with take(layout, "caption photos") as hold:
            with pytest.raises(HeldError, match="caption photos"):
                take(layout).__enter__()
            first = json.loads(layout.hold.read_bytes())["beat"]
            until(lambda: json.loads(layout.hold.read_bytes())["beat"] > first)
            with monkeypatch.context() as patch:
                patch.setattr(ProcessId, "alive", lambda self: None)
                with pytest.raises(HeldError, match="caption photos"):
                    take(layout, silence=500).__enter__()
            hold.check()
        assert holder(layout) is None
        write(layout, started=0)
        with take(layout) as hold:
            assert holder(layout) == hold.me
            other = write(layout)
            until(hold._lost.is_set)
        assert holder(layout) == other
    assert not [line for line in said if "conditional" in line]


@pytest.mark.parametrize("answer", ["ignores", "refuses"])
def test_a_store_without_conditions_is_told_of_once(
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
        with take(layout) as hold:
            first = json.loads(layout.hold.read_bytes())["beat"]
            until(lambda: json.loads(layout.hold.read_bytes())["beat"] > first)
            hold.check()
            assert holder(layout) == hold.me
        assert holder(layout) is None
    assert len([line for line in said if "no conditional writes" in line]) == 1


def test_the_command_is_told_without_secrets() -> None:
    said = command_line(
        ["/code/jobs/__main__.py", "caption", "https://ann:pw@host/a.jpg?X-Amz-Signature=abc", "my photos", "-o", "out"]
    )
    assert said == "python -m jobs caption 'https://***@host/a.jpg?X-Amz-Signature=***' 'my photos' -o out"
    assert len(command_line(["x" * 9999])) == 500
