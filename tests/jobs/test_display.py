"""Progress as a live view, as plain lines, as JSON lines, and not at all."""

import io
import json

import pytest
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.display import print_line
from jobs.progress import Progress
from jobs.ray_session import _logging
from jobs.shared_options import (
    PROGRESS_VARIABLE,
    VERBOSE_VARIABLE,
    ProgressMode,
    apply_shared_options,
    is_verbose,
    progress_mode,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(mode: ProgressMode) -> str:
    clock, stream = Clock(), io.StringIO()
    with apply_shared_options(progress=mode), Progress(300, stream=stream, clock=clock) as progress:
        progress.print_line("two captioners, s3://key:secret@bucket")
        for second in (4, 12, 24):
            clock.now = second
            progress.add(100, 1, {"fetch": 1.0, "model": 3.0})
    return stream.getvalue()


def test_json_lines_have_all_facts() -> None:
    message, *lines = [json.loads(line) for line in run(ProgressMode.json).splitlines()]
    assert (message["event"], message["text"]) == ("message", "two captioners, s3://***@bucket")
    last = lines[-1]
    assert [line["done"] for line in lines] == [100, 200, 300]
    assert (last["event"], last["total"], last["errors"], last["per_second"]) == ("progress", 300, 3, 10.0)
    assert last["stages"] == {"fetch": 3.0, "model": 9.0}
    assert lines[1]["seconds_left"] == 8.0


def test_plain_lines_and_none() -> None:
    assert len(run(ProgressMode.plain).splitlines()) == 3
    assert run(ProgressMode.none).splitlines() == ["two captioners, s3://***@bucket"]


def test_the_live_view_shows_stages_and_leaves_nothing() -> None:
    shown = run(ProgressMode.live)
    assert "fetch 25%  model 75%" in shown
    assert "300 of 300 images" in shown


def test_a_wrong_variable_is_refused_with_the_valid_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRESS_VARIABLE, "loud")
    with pytest.raises(ValueError, match="live"):
        progress_mode()


def test_shared_options_hold_for_the_command_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VERBOSE_VARIABLE, raising=False)
    with apply_shared_options(verbose=True):
        assert is_verbose()
        assert _logging() == {"logging_level": "info", "log_to_driver": True}
    assert not is_verbose()
    assert _logging() == {"logging_level": "error", "log_to_driver": False}


@pytest.mark.parametrize("command", [["--progress", "json", "caption"], ["caption", "--progress", "json"]])
def test_an_error_is_a_json_line_too(command: list[str], tmp_path) -> None:
    result = CliRunner().invoke(app, [*command, str(tmp_path / "gone"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    end = json.loads(result.stderr.splitlines()[-1])
    assert (end["event"], end["exit_code"]) == ("end", 2)
    assert "gone" in end["text"]
    assert progress_mode() is ProgressMode.auto


def test_a_message_outside_of_progress() -> None:
    stream = io.StringIO()
    print_line("hello", stream)
    assert stream.getvalue() == "hello\n"
