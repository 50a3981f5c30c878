"""Every example in the help and the README is valid on the command line."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from captioning.config import read_values
from jobs.__main__ import VERBS, app
from jobs.settings_schema import SAME_SETTINGS, SETTINGS_CLASSES, keys

ROOT = Path(__file__).resolve().parent.parent.parent
GROUP = typer.main.get_command(app)


def help_of(verb: str) -> str:
    command = GROUP.get_command(None, verb)
    return command.help or ""


def examples(text: str) -> list[str]:
    """The command lines in a text, with continuation lines joined."""
    joined = re.sub(r"\n\s*(?=--\w)", " ", text)
    return [match[1].strip(" `") for match in re.finditer(r"python -m jobs ([a-z]+ [^\n`#]*)", joined)]


def check(line: str) -> None:
    """Parse a line as the command line does, and check that its settings exist."""
    verb, *arguments = shlex.split(line.partition("  →")[0])
    command = GROUP.get_command(None, verb)
    assert command is not None, line
    given = command.make_context(verb, list(arguments)).params
    chosen = next((given[name] for name in ("settings", "set_", "set_values") if given.get(name)), ())
    for setting in chosen:
        key = setting.partition("=")[0]
        read_values(None, [setting])
        known = keys(verb)
        assert key in known or any(key.startswith(f"{name}.") for name in known), f"{line}: no setting {key}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example_that_it_takes(verb: str) -> None:
    found = examples(help_of(verb))
    assert any(line.split()[0] == verb for line in found), f"{verb} --help shows no example"
    for line in found:
        check(line)


def test_a_wrong_example_is_found() -> None:
    with pytest.raises(Exception, match="--no-such"):
        check("status OUTPUT --no-such")
    with pytest.raises(AssertionError, match=r"decoding\.beams"):
        check("caption A -o B --set decoding.beams=3")


def test_the_readme_shows_what_the_command_line_takes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in examples(block) if "[" not in line and "…" not in line]
    assert len(lines) >= 8
    for line in lines:
        check(line)


def test_verbs_with_settings_are_on_the_page() -> None:
    for verb in VERBS:
        options = {name for parameter in GROUP.get_command(None, verb).params for name in parameter.opts}
        assert ("--set" in options) == (SAME_SETTINGS.get(verb, verb) in SETTINGS_CLASSES), verb
