"""A submitted job as the cluster reports it: its state, its exit code, and what they mean."""

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from captioning.redaction import without_secrets
from jobs.cli import OK, UNFINISHED
from jobs.interrupts import INTERRUPTED
from jobs.progress import duration

#: The variable, and Ray's default, for the seconds between SIGTERM and SIGKILL when a job is stopped.
STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
_RAY_STOP_WAIT = 3

_STATE_TEXTS = {
    "PENDING": "waiting to start",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
}
#: What to do about failures of Ray rather than of the job.
_ADVICE = {
    "RUNTIME_ENV_SETUP_FAILURE": "The job's environment could not be set up: check what --pip and --requirements name.",
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": "The head was too busy or out of memory to start the job. Submit it again.",
    "JOB_SUPERVISOR_ACTOR_DIED": "The head node may have run out of memory or been lost. Submit the same command again "
    "to resume.",
}
_RESUBMIT = "Submit the same command again to resume."


@dataclass(frozen=True)
class Job:
    """A job of a cluster. Times are Unix timestamps; `exit_code` is None unless its process ended by itself."""

    id: str
    state: str
    command: str
    message: str = ""
    error_type: str | None = None
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    stop_wait: int = _RAY_STOP_WAIT

    @classmethod
    def from_details(cls, details: Mapping[str, Any]) -> "Job":
        """A job from a JobDetails object of Ray's REST API."""
        metadata = details.get("metadata") or {}
        variables = (details.get("runtime_env") or {}).get("env_vars") or {}
        command = str(metadata.get("captioning_command") or details.get("entrypoint") or "")
        return cls(
            id=str(details.get("submission_id") or details.get("job_id") or "?"),
            state=str(details.get("status") or "?"),
            command=without_secrets(command),
            message=str(details.get("message") or ""),
            error_type=details.get("error_type"),
            started=_seconds(details.get("start_time")),
            ended=_seconds(details.get("end_time")),
            exit_code=details.get("driver_exit_code"),
            stop_wait=_whole(variables.get(STOP_WAIT_VARIABLE), _RAY_STOP_WAIT),
        )

    @property
    def over(self) -> bool:
        """Whether its state is final."""
        return self.state in ("STOPPED", "SUCCEEDED", "FAILED")

    @property
    def state_text(self) -> str:
        """Its state in words."""
        return _STATE_TEXTS.get(self.state, self.state.lower())

    @property
    def code(self) -> int | None:
        """The exit code for its outcome, with the meaning of any verb's; None while it runs.

        Its own where it ended by itself, 130 where it was stopped. 1 where it was killed, or failed without an exit
        code: it is unfinished, and can be submitted again.
        """
        if not self.over:
            return None
        if self.state == "STOPPED":
            return INTERRUPTED
        if self.state == "SUCCEEDED":
            return OK
        return self.exit_code if self.exit_code is not None and 0 < self.exit_code < 256 else UNFINISHED

    def outcome(self) -> str:
        """How it ended and what to do next, in a few sentences, without repeating its log."""
        if self.state == "SUCCEEDED":
            return f"Job {self.id} succeeded{self._took()}."
        if self.state == "STOPPED":
            return f"Job {self.id} was stopped{self._took()}. {_RESUBMIT}"
        if self.exit_code is None:
            advice = _ADVICE.get(self.error_type or "", _RESUBMIT)
            return f"Job {self.id} failed: {self.reason() or 'the cluster gives no reason.'}\n{advice}"
        if self.exit_code < 0:
            number = -self.exit_code
            name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
            why = " The head node may have run out of memory." if name == "SIGKILL" else ""
            return f"Job {self.id} was killed by {name}{self._took()}.{why} {_RESUBMIT}"
        return f"Job {self.id} ended with exit code {self.exit_code}{self._took()}."

    def reason(self) -> str:
        """Ray's message about the job's state, shortened."""
        text = without_secrets(self.message).strip()
        return text if len(text) <= 2000 else f"{text[:500]}\n…\n{text[-1400:]}"

    def elapsed(self, now: float | None = None) -> str:
        """How long it has been running, or took."""
        if self.started is None:
            return "?"
        until = self.ended if self.ended is not None else (time.time() if now is None else now)
        return duration(max(0.0, until - self.started))

    def _took(self) -> str:
        return f" after {self.elapsed()}" if self.started is not None and self.ended is not None else ""


def local_time(seconds: float | None) -> str:
    """A timestamp in this machine's time zone: `2026-11-26 15:04:05`."""
    return "?" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) and milliseconds > 0 else None


def _whole(text: Any, default: int) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        return default
