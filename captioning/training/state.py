"""Saved states of a training run: weights, optimiser, averaged weights, position in the data, history.

A state is a folder below `OUTPUT/state`. Its `state.json` is written last and lists its files with their
sizes: a folder without it, or with a file of another size, is ignored. A state never overwrites one that may
still be needed. Random generators are not saved, since every step seeds them. States are written by a thread
while training goes on.
"""

import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from captioning.errors import UsageError
from captioning.storage import Location

_MARKER = "state.json"
_FOLDER = "state"

#: The tensors of a state by file (`model`, `optimizer`, …) and name.
Tensors = Mapping[str, Mapping[str, Tensor]]


@dataclass
class Progress:
    """The position of a run. `step` counts optimiser steps; `stage_step` and `epoch_step` those of the current ones."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    #: The current epoch of the stage.
    epoch: int = 0
    epoch_step: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    #: The score and step of the best checkpoint over all stages.
    best_score: float | None = None
    best_step: int | None = None
    #: Those of the current stage, which may use another score.
    stage_best_score: float | None = None
    stage_best_step: int | None = None
    validations_since_best: int = 0
    #: The step of the last validation, so that none is repeated.
    validated_step: int | None = None
    #: The current stage is over: its epochs are done, or validation has stopped it early.
    stage_ended: bool = False
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)

    def next_stage(self) -> None:
        """Move to the start of the next stage."""
        self.stage += 1
        self.stage_step = self.epoch = self.epoch_step = self.validations_since_best = 0
        self.stage_best_score = self.stage_best_step = self.validated_step = None
        self.stage_ended = False


@dataclass(frozen=True)
class State:
    """A saved state: the run's progress, and the folder with the tensors."""

    progress: Progress
    folder: Location

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file. Raises `UsageError` if it cannot be read."""
        try:
            tensors: dict[str, Tensor] = load_tensors((self.folder / f"{name}.safetensors").read_bytes())
        except Exception as error:
            raise unusable_state_error(self.folder, error) from error
        return tensors


def newest_state(output: Location) -> State | None:
    """The newest complete state, or None."""
    for folder in reversed(_folders(output)):
        try:
            marker = json.loads((folder / _MARKER).read_text())
            sizes = {name: _size(folder / name) for name in marker["files"]}
            progress = Progress(**marker["progress"])
        except (ValueError, KeyError, TypeError) as error:
            raise unusable_state_error(folder, error) from error
        if sizes == marker["files"]:
            return State(progress, folder)
    return None


def is_leftover(name: str) -> bool:
    """Whether a file of this name is a temporary one of `Location.write_bytes`, left behind by a kill."""
    return name.startswith(".") and name.endswith(".tmp")


def remove_leftovers(output: Location) -> None:
    """Delete temporary files that a killed run left among the states. No run may be active."""
    root = output / _FOLDER
    for name in root.names():
        if is_leftover(name):
            (root / name).delete()


def unusable_state_error(folder: Location, error: Exception) -> UsageError:
    """The error for a complete state that cannot be used."""
    return UsageError(f"The saved state {folder} cannot be used ({error}). Delete it to resume from the one before.")


class StateWriter:
    """Writes states in a thread, one at a time, and deletes all but the newest `keep`."""

    def __init__(self, output: Location, *, keep: int) -> None:
        self._output = output
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, progress: Progress, tensors: Tensors) -> None:
        """Write a state. `progress` and `tensors` are copied and may change once this returns.

        Waits for the previous state to be written and raises the error of that, if any.
        """
        self.wait()
        copies = {name: {key: _copy(value) for key, value in part.items()} for name, part in tensors.items()}
        values = json.loads(json.dumps(asdict(progress)))
        self._thread = threading.Thread(target=self._write, args=(values, copies), name="state-writer")
        self._thread.start()

    def wait(self) -> None:
        """Wait until all states are written. Raises the error of the last write, if any."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, progress: dict[str, Any], tensors: Tensors) -> None:
        try:
            folder = self._output / _FOLDER / _name(progress)
            # A state of this name exists only if it was unusable. It must stay ignored while its files change.
            (folder / _MARKER).delete()
            sizes = {}
            for name, part in tensors.items():
                data = save_tensors(dict(part))
                (folder / f"{name}.safetensors").write_bytes(data)
                sizes[f"{name}.safetensors"] = len(data)
            (folder / _MARKER).write_text(json.dumps({"files": sizes, "progress": progress}))
            self._delete_others(folder.name)
        except BaseException as error:
            self._error = error

    def _delete_others(self, newest: str) -> None:
        """Delete old and incomplete states, and unusable ones that are later than `newest`."""
        states = [folder.name for folder in _folders(self._output) if folder.name <= newest]
        kept = set(states[-self._keep :])
        root = self._output / _FOLDER
        for name in root.names():
            if name.startswith("step-") and name not in kept:
                _delete(root / name)


def save_weights(output: Location, name: str, weights: Mapping[str, Tensor]) -> None:
    """Write weights under a name beside the states, atomically."""
    portable = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    (output / _FOLDER / f"{name}.safetensors").write_bytes(save_tensors(portable))


def load_weights(output: Location, name: str) -> dict[str, Tensor]:
    """The weights that `save_weights` wrote under a name."""
    weights: dict[str, Tensor] = load_tensors((output / _FOLDER / f"{name}.safetensors").read_bytes())
    return weights


def saved_step(output: Location) -> int | None:
    """The step of the newest state, or None. Cheap: reads names alone."""
    folders = _folders(output)
    return int(folders[-1].name.split("-")[1]) if folders else None


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors by name; none for parameters that never had a gradient."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{key}": value for number, values in state.items() for key, value in values.items()}


def unflatten_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of `flatten_optimizer` into an optimiser."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _name(progress: Mapping[str, Any]) -> str:
    """A state's name; names sort by time. The states of a step before and after validation have different ones."""
    suffix = "-validated" if progress["validated_step"] == progress["step"] else ""
    return f"step-{progress['step']:08d}-{progress['stage']:02d}{suffix}"


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _folders(output: Location) -> list[Location]:
    """Complete states, oldest first."""
    root = output / _FOLDER
    return [root / name for name in root.names() if name.startswith("step-") and (root / name / _MARKER).exists()]


def _size(place: Location) -> int | None:
    info = place.info()
    return None if info is None else info.size


def _delete(folder: Location) -> None:
    # The marker first, so that a partly deleted state is ignored.
    (folder / _MARKER).delete()
    if folder.is_local:
        shutil.rmtree(folder.local_path, ignore_errors=True)
        return
    for name in folder.names():
        (folder / name).delete()
