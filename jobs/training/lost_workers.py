"""What happens when workers of a training are lost with their nodes: told, and gone on from, but not for ever.

Lives in Ray Train's controller, which is a process of its own on the driver's node, and tells the driver
through a file there. States are in OUTPUT: whoever is started again goes on from the newest by itself.
"""

from pathlib import Path
from typing import Any

from ray.train import UserCallback

from captioning.errors import UnfinishedError
from captioning.redaction import without_secrets
from captioning.storage import Location
from captioning.training.state import saved_step
from jobs.user_errors import find_user_error

#: So often workers are started again without a newer state than the time before.
_IN_VAIN = 3


class LostWorkers(UserCallback):  # type: ignore[misc]
    """Decides, whenever workers fail, whether they are started again."""

    def __init__(self, output: Location, told: Path) -> None:
        self._output = output
        self._told = told
        self._step: int | None = None
        self._in_vain = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Raise what ends the run: an error that is no loss, or one loss too many without progress in between."""
        for error in worker_exceptions.values():
            known = find_user_error(error)
            if known is not None:
                raise known
        ranks = ", ".join(str(rank) for rank in sorted(worker_exceptions))
        reason = f"worker {ranks} failed: {last_line(next(iter(worker_exceptions.values())))}"
        step = saved_step(self._output)
        self._in_vain = self._in_vain + 1 if step == self._step else 1
        self._step = step
        if self._in_vain > _IN_VAIN:
            raise UnfinishedError(
                f"Training stopped: {reason} That was {self._in_vain} times without a new saved state in between. Give "
                "the same command again to go on from the last one; a smaller `save_every_steps` loses less."
            )
        begin = "the beginning" if step is None else f"step {step:,}"
        with self._told.open("a") as file:
            file.write(without_secrets(f"Note: {reason} Going on from {begin}.").replace("\n", " ") + "\n")


def last_line(error: BaseException) -> str:
    """The last line of an error's text, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".") + "."
