"""Completion in a real bash with the printed script."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.completion import Shell, script

ROOT = Path(__file__).resolve().parent.parent.parent
BASH = shutil.which("bash")


def complete(line: str) -> list[str]:
    """What bash offers at the end of `line`, whose first word stands for this Python."""
    assert BASH is not None
    assert line.startswith("python ")
    program = f"""
{script(Shell.bash)}
COMP_LINE=$1; COMP_POINT=${{#1}}
_captioning_jobs "$2"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [BASH, "--norc", "-c", program, "bash", line, sys.executable],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return [word for word in done.stdout.splitlines() if word]


pytestmark = pytest.mark.skipif(BASH is None, reason="there is no bash here")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("python -m jobs sta", ["status"]),
        ("python -m jobs retry out --err", ["--error-class"]),
        ("python -m jobs export out --format image", ["imagefolder"]),
        ("python -m jobs caption a -o b --model flickr-l", ["flickr-lstm"]),
        ("python -m jobs caption a -o b --set decoding.beam", ["decoding.beam_size="]),
        ("python -m jobs caption a -o b --set runtime.encoder=on", ["onednn"]),
        ("python -m json.tool fi", []),
    ],
)
def test_bash_completes(line: str, offered: list[str]) -> None:
    assert complete(line) == offered


def test_an_empty_word_offers_all_verbs() -> None:
    from jobs.__main__ import VERBS

    assert complete("python -m jobs ") == list(VERBS)


def test_an_earlier_completion_of_python_is_asked_for_other_modules() -> None:
    assert BASH is not None
    program = f"""
earlier() {{ COMPREPLY=(mine); }}
complete -F earlier python
{script(Shell.bash)}
COMP_LINE="python -m http"; COMP_POINT=14
_captioning_jobs python
printf '%s' "${{COMPREPLY[@]}}"
complete -p python
"""
    done = subprocess.run([BASH, "--norc", "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("mine")
    assert "_captioning_jobs" in done.stdout
