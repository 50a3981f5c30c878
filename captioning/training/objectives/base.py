"""The interface of a training objective: a loss summed over its units, and how the model is validated.

An objective computes losses of batches; steps, optimisers and files are the training loop's.
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
    """The loss of one pass, as sums over its units; the caller divides by the units of all workers and passes.

    `total` is a scalar to minimise; `metrics` are sums over the same units, reported as means.
    """

    total: Tensor
    metrics: dict[str, float]


class Objective(ABC):
    """What a stage minimises."""

    #: Trained with the model and discarded after the stage.
    extra: nn.Module | None = None
    #: The fraction of the stage that is done, 0 to 1; set by the stage before each step.
    progress: float = 0.0
    #: Validated by the CIDEr-D of generated captions; otherwise by `validate`.
    scored_by_captions: bool = True
    #: `loss` communicates with the other workers. All must have equally many passes, padded by `loss_without_batch`.
    collective: bool = False

    @abstractmethod
    def units(self, batch: Batch) -> int:
        """The number of units (tokens, samples or images) that the loss of `batch` sums over."""

    @abstractmethod
    def loss(self, model: CaptionModel, batch: Batch) -> Loss:
        """The loss of one pass. The caller has seeded the random generators and set the precision."""

    def loss_without_batch(self, model: CaptionModel) -> Loss:
        """Take part in a pass in which only other workers have a batch. For `collective` objectives."""
        raise NotImplementedError(f"{type(self).__name__} is not collective.")

    def validate(self, model: CaptionModel, shards: ShardSet, workers: Workers) -> dict[str, float]:
        """Metrics of the model on the validation split; `score` is one of them, higher is better."""
        raise NotImplementedError(f"{type(self).__name__} is validated by captions.")
