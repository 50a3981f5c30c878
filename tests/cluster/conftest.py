"""Shared fixtures: a fake head, and an environment without the user's tokens and addresses."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.fake_head import FakeHead, serving


@pytest.fixture
def nobodys_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in list(os.environ):
        if name.startswith("RAY_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def head() -> Iterator[FakeHead]:
    """A fake head on a port of this machine."""
    with serving(FakeHead()) as served:
        yield served


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A settings file outside the checkout."""
    file = tmp_path / "mine.yaml"
    file.write_text("decoding:\n  beam_size: 2\n")
    return file
