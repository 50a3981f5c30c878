"""Where a training run stands, on disk: weights, optimiser, averages, place in the data, history.

A state is a folder below `OUTPUT/state`; its `state.json` is written last, and a folder without
one does not count. Random numbers need no saving: every step seeds its own.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from captioning.errors import UsageError
from captioning.models.base import CaptionModel
from captioning.models.checkpoint import tied_names
from captioning.storage import Location
from captioning.training.optim import WeightAverage

_KEPT = 2
_MARKER = "state.json"


@dataclass
class Progress:
    """How far a run has come. `step` counts optimiser steps, `epoch_step` those of the present epoch."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    best_score: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0
    #: The step after which the last validation was made: none is made twice.
    validated_step: int | None = None
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


def save_state(
    output: Location,
    progress: Progress,
    model: CaptionModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> None:
    """Write a state for `progress.step` and drop older ones but the last before it."""
    folder = output / "state" / f"step-{progress.step:08d}"
    tied = set(tied_names(model))
    weights = {name: value for name, value in model.state_dict().items() if name not in tied}
    files = {"model": weights, "optimizer": _flatten(optimizer)}
    if average is not None:
        files["average"] = average.weights
    for name, tensors in files.items():
        portable = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        (folder / f"{name}.safetensors").write_bytes(save_tensors(portable))
    (folder / _MARKER).write_text(json.dumps(asdict(progress)))
    for old in _states(output)[:-_KEPT]:
        _delete(old)


def load_state(
    output: Location, model: CaptionModel, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> Progress | None:
    """Put the newest state into `model`, `optimizer` and `average`; None when there is none."""
    states = _states(output)
    if not states:
        return None
    folder = states[-1]
    try:
        progress = Progress(**json.loads((folder / _MARKER).read_text()))
        model.load_state_dict(load_tensors((folder / "model.safetensors").read_bytes()), strict=False)
        _unflatten(optimizer, load_tensors((folder / "optimizer.safetensors").read_bytes()))
        if average is not None:
            average.load(load_tensors((folder / "average.safetensors").read_bytes()))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"The saved state {folder} cannot be used ({error}). Delete it to go on from the one before."
        ) from error
    return progress


def _states(output: Location) -> list[Location]:
    """Complete states, oldest first."""
    root = output / "state"
    return [root / name for name in root.names() if (root / name / _MARKER).exists()]


def _delete(folder: Location) -> None:
    # The marker first: what is half deleted must not count.
    (folder / _MARKER).delete()
    for name in folder.names():
        (folder / name).delete()
    if folder.is_local:
        folder.local_path.rmdir()


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{number}.{key}": value for number, values in state.items() for key, value in values.items()}


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
