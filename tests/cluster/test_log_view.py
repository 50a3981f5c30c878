"""A job's log in a terminal and elsewhere."""

import io

import pytest

from cluster.log_view import LogView


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


PIECES = ("Index", "ed.\n1 of 9 images\n2 of", " 9 images\nA note.\n9 of 9 images\n")


def shown(stream: io.StringIO) -> str:
    view = LogView(stream)
    for piece in PIECES:
        view(piece)
    return stream.getvalue()


def test_outside_a_terminal_the_log_is_unchanged() -> None:
    assert shown(io.StringIO()) == "".join(PIECES)


def test_in_a_terminal_progress_replaces_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    expected = "Indexed.\n1 of 9 images\n\x1b[1A\x1b[2K2 of 9 images\nA note.\n9 of 9 images\n"
    assert shown(Terminal()) == expected
    monkeypatch.setenv("COLUMNS", "10")
    assert "\x1b" not in shown(Terminal())


def test_a_last_line_without_an_end_is_shown() -> None:
    stream = Terminal()
    view = LogView(stream)
    view("broken")
    assert stream.getvalue() == ""
    view.end()
    assert stream.getvalue() == "broken\n"


def test_secrets_are_removed() -> None:
    stream = io.StringIO()
    LogView(stream)("read https://host/a?Signature=abcdef\n")
    assert "abcdef" not in stream.getvalue()
