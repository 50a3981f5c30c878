"""`status`: what is done, how fast, and the exit code, from file names and the event log."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import captioning.run.table
from captioning.errors import UsageError
from captioning.run.lock import LockOwner, RunLock
from jobs.__main__ import app
from jobs.status_facts import errors_in_log, rate_of_late, status_of
from tests.jobs.report_run import SmallRun, make_run, unfold, write_log


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return make_run(tmp_path, [f"{number:02d}.jpg" for number in range(10)], broken=("03.jpg", "05.jpg"))


def status(run: SmallRun, *more: str) -> Result:
    return CliRunner().invoke(app, ["status", str(run.output), *more])


def at(seconds: float, kind: str, **fields: object) -> dict[str, object]:
    time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return {"time": time.isoformat(), "event": kind, **fields}


def test_a_finished_run(run: SmallRun) -> None:
    done = status(run)
    assert done.exit_code == 0, done.output
    assert "10 of 10 done (100%), 0 pending" in done.output
    assert ": done" in done.output


def test_an_unfinished_run_ends_with_1_and_says_what_is_left(run: SmallRun) -> None:
    unfold(run, done=2)
    done = status(run, "--json")
    assert done.exit_code == 1
    values = json.loads(done.output)
    facts = ("state", "images", "done", "pending", "staged", "shards", "shards_done", "parts", "parts_in_all")
    assert [values[key] for key in facts] == ["stopped", 10, 8, 2, 2, 3, 2, 0, 1]
    assert "to resume" in status(run).output


def test_where_there_is_no_run(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["status", str(tmp_path)]).exit_code == 2


def test_errors_are_read_from_the_table_only_when_asked(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(status(run, "--json", "--errors").output)["errors"] == {"empty": 2}
    unfold(run, done=1)
    assert json.loads(status(run, "--json", "--errors").output)["errors"] == {"empty": 1}
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", None)
    monkeypatch.setattr("pyarrow.parquet.read_table", None)
    monkeypatch.setattr(captioning.run.table, "read_part", None)
    assert status(run).exit_code == 1


def test_the_rate_is_the_current_one(run: SmallRun) -> None:
    events = [at(0, "start"), *(at(10 + 5 * number, "shards", images=100) for number in range(60))]
    assert rate_of_late(events) == pytest.approx(20)
    slower = [*events, *(at(305 + 10 * number, "shards", images=50) for number in range(1, 40))]
    assert rate_of_late(slower) == pytest.approx(5)
    again = [*events, at(9000, "start"), at(9010, "shards", images=50)]
    assert rate_of_late(again) == pytest.approx(5)
    assert rate_of_late([*again, at(9012, "shards", images=50)]) == pytest.approx(25), "start-up is no captioning"
    assert rate_of_late([*again, at(9020, "retry"), at(9030, "shards", images=3)]) == pytest.approx(0.3)
    assert rate_of_late([at(0, "start")]) is None
    assert rate_of_late([]) is None


def test_a_run_at_work_has_time_left(run: SmallRun) -> None:
    unfold(run, done=2)
    write_log(run, [at(0, "start"), at(10, "shards", images=4), at(20, "shards", images=4)])
    soon = datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC)
    # Whether it lives on another machine only the event log tells.
    elsewhere = replace(LockOwner.current("caption, elsewhere"), machine="another")
    run.layout.lock_file.write_bytes(elsewhere.to_json())
    found = status_of(run.layout, now=soon)
    assert (found.state, found.images_per_second, found.seconds_left) == ("running", 0.4, 5.0)
    assert found.holder == str(elsewhere)
    late = status_of(run.layout, now=soon + timedelta(hours=1))
    assert (late.state, late.holder) == ("stopped", None)


def test_the_holder_is_shown_while_it_is_alive(run: SmallRun) -> None:
    unfold(run, done=2)
    write_log(run, [at(0, "start"), at(10, "shards", images=4)])
    soon = datetime(2026, 1, 1, 0, 0, 15, tzinfo=UTC)
    assert status_of(run.layout, now=soon).state == "stopped"  # nobody holds it
    with RunLock(run.layout, notify=print, command="caption photos"):
        told = status(run)
        assert ": running, process " in told.output
        assert "caption photos" in told.output
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run.layout.lock_file.write_bytes(replace(LockOwner.current("caption, killed"), pid=process.pid).to_json())
    dead = status_of(run.layout, now=soon)
    assert (dead.state, dead.holder) == ("stopped", None)


def test_errors_from_the_event_log() -> None:
    events = [
        at(0, "shards", error_classes={"empty": 2, "cut": 1}),
        at(1, "shards", error_classes={"empty": 1}),
        at(2, "shards", images=3),
        at(3, "shards", error_classes="damaged"),
    ]
    assert errors_in_log(events) == {"cut": 1, "empty": 3}
    # A retry replaces rows: it counts once it has finished, with the counts of its table.
    retried = [*events, at(4, "retry"), at(5, "shards", error_classes={"empty": 2})]
    assert errors_in_log(retried) == {"cut": 1, "empty": 3}
    retried.append(at(6, "finished", error_classes={"empty": 2}))
    assert errors_in_log(retried) == {"empty": 2}
    grown = [*retried, at(7, "start"), at(8, "shards", error_classes={"cut": 1})]
    assert errors_in_log(grown) == {"cut": 1, "empty": 2}


def test_a_missing_run_names_the_place(run: SmallRun) -> None:
    run.layout.run_json.delete()
    with pytest.raises(UsageError, match="captions"):
        status_of(run.layout)
