"""Ray's job states as exit codes and messages."""

from typing import Any

import pytest

from cluster.job import Job


def job(**details: Any) -> Job:
    return Job.from_details(
        {"submission_id": "caption-1", "entrypoint": "e", "start_time": 1000, "end_time": 13_000, **details}
    )


@pytest.mark.parametrize(
    ("details", "code", "says"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, "succeeded after 12 s"),
        ({"status": "FAILED", "driver_exit_code": 1}, 1, "exit code 1 after 12 s"),
        ({"status": "FAILED", "driver_exit_code": 2}, 2, "exit code 2"),
        ({"status": "FAILED", "driver_exit_code": 130}, 130, "exit code 130"),
        ({"status": "STOPPED"}, 130, "was stopped.*command again to resume"),
        ({"status": "FAILED", "driver_exit_code": -9}, 1, "killed by SIGKILL.*memory.*to resume"),
        ({"status": "FAILED", "driver_exit_code": -15}, 1, "killed by SIGTERM"),
        ({"status": "FAILED", "message": "No space", "error_type": "JOB_SUPERVISOR_ACTOR_DIED"}, 1, "No space.*again"),
        ({"status": "FAILED", "message": "pip", "error_type": "RUNTIME_ENV_SETUP_FAILURE"}, 1, "pip.*--requirements"),
    ],
)
def test_an_ended_job_has_a_code_and_an_outcome(details: dict[str, Any], code: int, says: str) -> None:
    found = job(**details)
    assert found.over
    assert found.code == code
    import re

    assert re.search(says, found.outcome(), re.DOTALL)


def test_a_running_job_has_no_code() -> None:
    found = job(status="RUNNING", end_time=None, runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})
    assert not found.over
    assert found.code is None
    assert found.stop_wait == 120
    assert found.elapsed(now=61.0) == "1 min 0 s"
    assert job(status="PENDING").stop_wait == 3


def test_a_long_reason_is_cut() -> None:
    assert len(job(status="FAILED", message="x" * 50_000).outcome()) < 3000
