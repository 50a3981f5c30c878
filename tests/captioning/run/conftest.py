import os

import pytest

from tests.captioning.run.runs import small_parts

__all__ = ["small_parts"]


@pytest.fixture(autouse=True)
def no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power does not fail in these tests, and a sync can take a second on a busy disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
