"""Errors become one message and an exit code; `--help` imports nothing heavy."""

import os
import signal
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from captioning.errors import ImageError, InputError, StorageError, UnfinishedError
from jobs.__main__ import VERBS, app
from jobs.cli import guard
from jobs.shared_options import TRACEBACK_VARIABLE
from jobs.user_errors import find_user_error
from jobs.verb_settings import read_config


def run(verb) -> tuple[int, str]:
    single = typer.Typer()
    single.command()(guard(verb))
    result = CliRunner().invoke(single, [])
    return result.exit_code, result.stderr


def raising(error: BaseException):
    def verb() -> None:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no such folder"), 2),
        (UnfinishedError("no such folder"), 1),
        (StorageError("missing", "no such folder"), 1),
    ],
)
def test_a_user_error_is_one_message_and_a_code(error, code) -> None:
    assert run(raising(error)) == (code, "Error: no such folder\n")


def test_a_message_shows_no_credentials() -> None:
    said = run(raising(InputError("nothing at ftp://me:s3cr3t@host/a")))
    assert said == (2, "Error: nothing at ftp://***@host/a\n")


def test_an_interrupt_says_how_to_go_on() -> None:
    code, said = run(raising(KeyboardInterrupt()))
    assert code == 130
    assert said == "Interrupted. Run the same command again to continue.\n"
    assert run(raising(KeyboardInterrupt("Type x."))) == (130, "Interrupted. Type x.\n")


def test_sigterm_is_an_interrupt_and_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def verb() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    assert run(verb)[0] == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_bug_keeps_its_traceback() -> None:
    single = typer.Typer()
    single.command()(guard(raising(ZeroDivisionError("bug"))))
    assert isinstance(CliRunner().invoke(single, []).exception, ZeroDivisionError)


def test_a_user_error_is_found_where_a_worker_wrapped_it() -> None:
    class RayTaskError(Exception):
        cause = ImageError("truncated", "the end is missing")

    outer = RuntimeError("the pipeline failed")
    outer.__cause__ = RayTaskError()
    found = find_user_error(outer)
    assert isinstance(found, ImageError)
    assert found.error_class == "truncated"
    assert find_user_error(ValueError("nothing of ours")) is None


def test_the_traceback_is_shown_when_asked_for(monkeypatch) -> None:
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    code, said = run(raising(InputError("no such folder")))
    assert code == 2
    assert "Traceback" in said
    assert said.endswith("Error: no such folder\n")


def test_a_config_that_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(Exception, match=r"gone\.yaml cannot be read"):
        read_config(tmp_path / "gone.yaml")
    (tmp_path / "a.yaml").write_text("a: 1\n")
    assert read_config(tmp_path / "a.yaml") == ("a: 1\n", str(tmp_path / "a.yaml"))


def test_every_verb_explains_itself_without_heavy_imports() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from jobs.__main__ import VERBS, app\n"
        "for arguments in [['--help'], *([verb, '--help'] for verb in VERBS)]:\n"
        "    result = CliRunner().invoke(app, arguments)\n"
        "    assert result.exit_code == 0, (arguments, result.output)\n"
        "    assert all(verb in result.output for verb in VERBS) or arguments != ['--help']\n"
        "heavy = {'torch', 'ray', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_verb_is_refused() -> None:
    result = CliRunner().invoke(app, ["captoin"])
    assert result.exit_code == 2
    assert "captoin" in result.stderr
    assert VERBS[0] == "caption"
