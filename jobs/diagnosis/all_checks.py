"""Runs all checks of `doctor`, quick ones first. A check that fails, hangs or dies does not stop the others.

Checks that import PyTorch or start Ray run in processes of their own, which start first and report last.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from captioning.config import to_dict
from captioning.errors import CaptioningError
from captioning.redaction import without_secrets
from jobs.diagnosis.settings import DoctorSettings

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """A check's result: `fail` where captioning cannot work; `todo` says what to do about it."""

    name: str
    state: State
    text: str
    todo: str = ""

    def shown(self, mark: str) -> str:
        """The finding as text for people."""
        todo = f"\n  {'':<13}→ {without_secrets(self.todo)}" if self.todo else ""
        return f"{mark} {self.name:<13}{without_secrets(self.text)}{todo}"

    def to_dict(self) -> dict[str, str]:
        """The finding as plain values."""
        return {key: without_secrets(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Finding":
        """The finding that a check's process has sent."""
        return cls(values["name"], values["state"], values["text"], values.get("todo", ""))


@dataclass(frozen=True)
class DoctorRequest:
    """What to check."""

    model: str | None
    inputs: tuple[str, ...]
    output: str | None
    settings: DoctorSettings


def run_checks(doctor: DoctorRequest) -> Iterator[Finding]:
    """Yield the findings, each as soon as it is known."""
    from jobs.diagnosis import machine_checks, package_checks, storage_checks
    from jobs.diagnosis.check_process import CheckProcess

    # Both take seconds, so they start now and report last.
    captioner = CheckProcess(
        "jobs.diagnosis.torch_checks", {"model": doctor.model, "settings": to_dict(doctor.settings)}
    )
    ray = CheckProcess("jobs.diagnosis.ray_checks", {})
    try:
        yield from _safely("python", machine_checks.python)
        yield from _safely("packages", package_checks.packages)
        yield from _safely("extras", package_checks.extras)
        yield from _safely("cores", machine_checks.cores)
        yield from _safely("memory", machine_checks.memory)
        yield from _safely("disk", lambda: machine_checks.disks(doctor.output))
        yield from _safely("/dev/shm", machine_checks.shared_memory)
        yield from _safely("gpu", machine_checks.gpu)
        for text in doctor.inputs:
            yield from _safely("input", partial(storage_checks.check_input, text, doctor.settings.storage))
        if doctor.output is not None:
            output = doctor.output
            yield from _safely("output", lambda: storage_checks.check_output(output, doctor.settings.storage))
        yield from captioner.findings(("torch", "torchvision", "cuda", "captioner"), seconds=180)
        yield from ray.findings(("ray", "nodes"), seconds=120)
    finally:
        captioner.stop()
        ray.stop()


def _safely(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except CaptioningError as error:
        yield Finding(name, "fail", str(error))
    except Exception as error:  # a bug in one check must not stop the others
        yield Finding(name, "fail", f"The check itself failed: {type(error).__name__}: {error}")
