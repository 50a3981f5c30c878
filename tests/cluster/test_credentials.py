"""Tokens: found where Ray finds them, sent, and never shown."""

from pathlib import Path

import pytest

from captioning.errors import UsageError
from cluster.credentials import find_credentials

pytestmark = pytest.mark.usefixtures("nobodys_home")

TOKEN = "d2c47ae0b1"


def test_without_a_token_nothing_is_sent() -> None:
    assert find_credentials().headers() == {}


def test_tokens_are_looked_for_in_rays_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = Path.home() / ".ray"
    home.mkdir()
    (home / "auth_token").write_text("of-the-home\n")
    assert find_credentials().headers() == {"Authorization": "Bearer of-the-home"}
    file = tmp_path / "token"
    file.write_text("  of-the-file \nmore")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert find_credentials().headers() == {"Authorization": "Bearer of-the-file"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", " of-the-variable\n")
    assert find_credentials().headers() == {"Authorization": "Bearer of-the-variable"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_credentials().headers() == {}


def test_a_required_token_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(UsageError, match="RAY_AUTH_TOKEN"):
        find_credentials()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(UsageError, match="/nowhere/token"):
        find_credentials()


def test_a_token_that_cannot_be_sent_is_reported_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", f"{TOKEN}\nX-Other: 1")
    with pytest.raises(UsageError, match="invalid characters") as raised:
        find_credentials()
    assert TOKEN not in str(raised.value)


def test_the_token_is_in_no_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"Authorization": "Basic c2VjcmV0"}')
    credentials = find_credentials()
    assert TOKEN not in repr(credentials)
    assert "c2VjcmV0" not in repr(credentials)
    assert credentials.headers() == {"Authorization": "Basic c2VjcmV0", "X-Ray-Authorization": f"Bearer {TOKEN}"}
    assert set(credentials.secrets()) == {TOKEN, "Basic c2VjcmV0"}


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '{"a": "b\\nc"}'])
def test_malformed_headers_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", text)
    with pytest.raises(UsageError, match="RAY_JOB_HEADERS"):
        find_credentials()
