"""A session stops what it started and leaves what it found."""

import os
import sys
from pathlib import Path

import pytest

from captioning.errors import UnfinishedError
from jobs.ray_session import object_store_bytes, quiet_environment, ray_session, start_local


@pytest.mark.usefixtures("ray_local")
def test_a_running_ray_is_used_and_left_running() -> None:
    import ray

    before = ray.get_runtime_context().get_job_id()
    with ray_session():
        assert ray.get_runtime_context().get_job_id() == before
    assert ray.is_initialized()


def test_the_object_store_is_small() -> None:
    assert 128 * 1024**2 <= object_store_bytes() <= 2 * 1024**3


def test_a_slow_start_of_ray_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []

    class Node:
        def __init__(self) -> None:
            raise RuntimeError("The current node timed out during startup.")

        def kill_all_processes(self, **options: bool) -> None:
            stopped.append(True)

    monkeypatch.setattr("ray.init", lambda **options: Node())
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setenv("RAY_TMPDIR", "/elsewhere")
    said = r"Could not start a local Ray: .* timed out.* in /elsewhere/ray/session_latest/logs"
    with pytest.raises(UnfinishedError, match=said):
        start_local()
    assert len(stopped) == 5


def test_a_signal_while_ray_starts_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own SIGTERM handler calls `sys.exit(15)`."""

    def leave(**options: object) -> None:
        sys.exit(15)

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", leave)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(KeyboardInterrupt), ray_session():
        pass
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(KeyboardInterrupt), ray_session():
        pass


def test_an_existing_token_is_sent_to_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    quiet_environment()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    quiet_environment()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    quiet_environment()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    quiet_environment()
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_an_address_that_does_not_answer_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(UnfinishedError, match=r"RAY_ADDRESS=10\.0\.0\.1:6379: no answer.*token"), ray_session():
        pass
