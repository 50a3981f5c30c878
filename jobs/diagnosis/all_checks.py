"""All checks of `doctor`, quick ones first. A check that fails, hangs or dies stops no other.

What imports PyTorch or starts Ray does so in processes of its own, which begin at once and are heard
last. Knows the order of the checks; what each looks at is told by modules beside this one.
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
    """What a check found: `fail` where captioning cannot work so, `todo` what to do about it."""

    name: str
    state: State
    text: str
    todo: str = ""

    def shown(self, mark: str) -> str:
        """The finding as people read it."""
        todo = f"\n  {'':<13}→ {without_secrets(self.todo)}" if self.todo else ""
        return f"{mark} {self.name:<13}{without_secrets(self.text)}{todo}"

    def to_dict(self) -> dict[str, str]:
        """The finding as plain values."""
        return {key: without_secrets(value) for key, value in asdict(self).items()}

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Finding":
        """The finding that a process of its own has told."""
        return cls(values["name"], values["state"], values["text"], values.get("todo", ""))


@dataclass(frozen=True)
class Doctor:
    """What to look at."""

    model: str | None
    inputs: tuple[str, ...]
    output: str | None
    settings: DoctorSettings


def examine(doctor: Doctor) -> Iterator[Finding]:
    """The findings, each as soon as it is there."""
    from jobs.diagnosis import machine_checks, package_checks, storage_checks
    from jobs.diagnosis.child import Child

    # Both take seconds: they begin now and are heard last.
    captioner = Child("jobs.diagnosis.torch_checks", {"model": doctor.model, "settings": to_dict(doctor.settings)})
    ray = Child("jobs.diagnosis.ray_checks", {})
    try:
        yield from _guarded("python", machine_checks.python)
        yield from _guarded("packages", package_checks.packages)
        yield from _guarded("extras", package_checks.extras)
        yield from _guarded("cores", machine_checks.cores)
        yield from _guarded("memory", machine_checks.memory)
        yield from _guarded("disk", lambda: machine_checks.disks(doctor.output))
        yield from _guarded("/dev/shm", machine_checks.shared_memory)
        yield from _guarded("gpu", machine_checks.gpu)
        for text in doctor.inputs:
            yield from _guarded("input", partial(storage_checks.check_input, text, doctor.settings.storage))
        if doctor.output is not None:
            output = doctor.output
            yield from _guarded("output", lambda: storage_checks.check_output(output, doctor.settings.storage))
        yield from captioner.findings(("torch", "torchvision", "cuda", "captioner"), seconds=180)
        yield from ray.findings(("ray", "nodes"), seconds=120)
    finally:
        captioner.end()
        ray.end()


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except CaptioningError as error:
        yield Finding(name, "fail", str(error))
    except Exception as error:  # one check's bug is not the others'
        yield Finding(name, "fail", f"The check itself failed: {type(error).__name__}: {error}")
