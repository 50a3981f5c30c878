"""Decides whether training goes on after workers are lost with their nodes.

Runs in Ray Train's controller, a separate process on the driver's node, and sends messages to the driver through
a file. Restarted workers resume from the newest state in OUTPUT by themselves.
"""

from pathlib import Path
from typing import Any

from ray.train import UserCallback

from captioning.errors import UnfinishedError
from captioning.redaction import without_secrets
from captioning.storage import Location
from captioning.training.state import saved_step
from jobs.user_errors import find_user_error

#: Give up after this many restarts in a row without a new saved state.
_MAX_FUTILE_RESTARTS = 3


class RestartPolicy(UserCallback):  # type: ignore[misc]
    """Lets Ray Train restart failed workers, or raises to end the run. `messages` is a file for the driver to print."""

    def __init__(self, output: Location, messages: Path) -> None:
        self._output = output
        self._messages = messages
        self._step: int | None = None
        self._futile_restarts = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Raise if the run must end: for an error of the user's, or after too many losses without progress."""
        for error in worker_exceptions.values():
            known = find_user_error(error)
            if known is not None:
                raise known
        ranks = ", ".join(str(rank) for rank in sorted(worker_exceptions))
        workers = "worker" if len(worker_exceptions) == 1 else "workers"
        reason = f"{workers} {ranks} failed: {last_line(next(iter(worker_exceptions.values())))}"
        step = saved_step(self._output)
        self._futile_restarts = self._futile_restarts + 1 if step == self._step else 1
        self._step = step
        if self._futile_restarts > _MAX_FUTILE_RESTARTS:
            raise UnfinishedError(
                f"Training stopped: {reason} Workers failed {self._futile_restarts} times without a new saved state in "
                "between. Run the same command again to resume; a smaller `save_every_steps` loses less work."
            )
        begin = "Starting over" if step is None else f"Resuming from step {step:,}"
        with self._messages.open("a") as file:
            file.write(without_secrets(f"Note: {reason} {begin}.").replace("\n", " ") + "\n")


def last_line(error: BaseException) -> str:
    """The last line of an error's text, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".") + "."
