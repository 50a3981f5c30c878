"""What the training loop asks of an objective: a loss summed over its units, and how it is judged.

An objective knows models and batches, and nothing of steps, optimisers or files.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from captioning.data.shards import ShardSet
from captioning.models.base import CaptionModel
from captioning.training.batches import Batch
from captioning.training.workers import Workers


@dataclass(frozen=True)
class Loss:
    """What one pass gave: sums over its units, since who divides must know the units of all workers and passes.

    `total` is a scalar and is minimised; `facts` are sums over the same units, told as means.
    """

    total: Tensor
    facts: dict[str, float]


class Objective(ABC):
    """What a stage makes small."""

    #: Learns beside the model, and is thrown away after the stage.
    extra: nn.Module | None = None
    #: The share of the stage that is behind us, 0 to 1; the loop keeps it.
    done: float = 0.0
    #: Judged by the CIDEr-D of generated captions; otherwise by `validate`.
    judged_by_captions: bool = True
    #: `loss` looks at what the other workers have: all must have as many passes, made up with `absent`.
    joint: bool = False

    @abstractmethod
    def units(self, batch: Batch) -> int:
        """What the loss of `batch` is a sum over: tokens, captions or images. Known before the loss."""

    @abstractmethod
    def loss(self, model: CaptionModel, batch: Batch) -> Loss:
        """The loss of one pass. The caller has seeded the random numbers and chosen the precision."""

    def absent(self, model: CaptionModel) -> Loss:
        """Take part in a pass for which the other workers have batches, and this one has none; for `joint` ones."""
        raise NotImplementedError(f"{type(self).__name__} needs nothing of the other workers.")

    def validate(self, model: CaptionModel, shards: ShardSet, workers: Workers) -> dict[str, float]:
        """How well the model does on the validation split; `score` is among the figures, higher is better."""
        raise NotImplementedError(f"{type(self).__name__} is judged by captions.")
