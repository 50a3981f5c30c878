"""The optimiser, its schedule, and the moving average of the weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from captioning.models.base import CaptionModel
from captioning.training.settings import OptimSettings


def make_optimizer(
    model: CaptionModel, settings: OptimSettings, extra: torch.nn.Module | None = None
) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters, with a learning rate per part and decay for matrices only.

    The modules in `extra` get the learning rate of randomly initialised weights.
    """
    fused = model.device.type == "cuda"
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for part in (model, extra) if extra is not None else (model,):
        embeddings = {id(module.weight) for module in part.modules() if isinstance(module, torch.nn.Embedding)}
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                decayed = parameter.ndim > 1 and id(parameter) not in embeddings
                rate = _peak_rate(model, name, settings) if part is model else settings.lr
                groups.setdefault((rate, decayed), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak_lr": rate,
                "lr": 0.0,
                "weight_decay": settings.weight_decay if decayed else 0.0,
            }
            for (rate, decayed), parameters in sorted(groups.items(), key=lambda group: group[0])
        ],
        betas=(0.9, 0.98),
        fused=fused,
        foreach=not fused,
    )


def _peak_rate(model: CaptionModel, name: str, settings: OptimSettings) -> float:
    if settings.encoder_lr is not None and name.startswith(model.encoder_prefixes):
        return settings.encoder_lr
    return settings.pretrained_lr if name.startswith(model.pretrained_prefixes) else settings.lr


def schedule_factor(settings: OptimSettings, step: int, total_steps: int) -> float:
    """The factor of the peak learning rate at `step` (from 0) of `total_steps`."""
    warmup = min(settings.warmup_steps, max(total_steps // 2, 1))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total_steps - warmup, 1)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if settings.schedule == "linear":
        return max(1.0 - done, 0.0)
    return 1.0


def trained_weights(model: CaptionModel) -> dict[str, Tensor]:
    """Copies of the trainable weights by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def interpolate_weights(weights: Mapping[str, Tensor], others: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) · weights + share · others, by name."""
    return {name: weight + share * (others[name] - weight) for name, weight in weights.items()}


class WeightAverage:
    """Exponential moving average of the trained weights (Polyak & Juditsky 1992), with a lower decay at first."""

    def __init__(self, model: CaptionModel, decay: float) -> None:
        self._decay = decay
        self.weights = trained_weights(model)

    @torch.no_grad()
    def update(self, model: CaptionModel, step: int) -> None:
        """Update the average with the weights after `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        new = dict(model.named_parameters())
        average = list(self.weights.values())
        torch._foreach_lerp_(average, [new[name].detach() for name in self.weights], 1 - decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load a saved average."""
        for name, value in self.weights.items():
            value.copy_(weights[name])


class swapped_weights:
    """A context in which the model has other weights."""

    def __init__(self, model: CaptionModel, weights: Mapping[str, Tensor]) -> None:
        self._model = model
        self._weights = weights
        self._originals: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        self._originals = self._swap(self._weights)

    def __exit__(self, *_: object) -> None:
        self._swap(self._originals)

    @torch.no_grad()
    def _swap(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy `weights` into the model; the weights that they replace."""
        parameters = dict(self._model.named_parameters())
        previous = {}
        for name, value in weights.items():
            previous[name] = parameters[name].detach().clone()
            parameters[name].copy_(value)
        return previous
