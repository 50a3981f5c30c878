"""Collective operations among the training processes over torch.distributed; no-ops for a single process."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from captioning.errors import CaptioningError

T = TypeVar("T")
#: Gradients are all-reduced in buckets of about this many numbers: few calls, little extra memory.
_BUCKET_SIZE = 8_000_000


class Workers:
    """The training processes, seen from one of them. All must call the collective methods in the same order."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device or torch.device("cpu")

    def slices(self, count: int) -> range:
        """Which of the `count` slices of a step's batch this worker takes; together the workers take each once."""
        return range(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    @staticmethod
    def from_process_group(device: torch.device | None = None) -> "Workers":
        """The workers of the initialised process group, or this process alone."""
        if not dist.is_initialized():
            return Workers(device=device)
        return Workers(dist.get_rank(), dist.get_world_size(), device)

    def sum(self, value: float) -> float:
        """The sum of every worker's `value`."""
        if self.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def sum_each(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums of every worker's `values`."""
        if self.world_size == 1:
            return list(values)
        totals = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return totals.tolist()

    def sum_by_name(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums of every worker's `values` by name; a name that a worker lacks counts as zero."""
        if self.world_size == 1:
            return dict(values)
        totals: Counter[str] = Counter()
        for theirs in self.gather(dict(values)):
            totals.update(theirs)
        return dict(totals)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over the workers.

        A gradient that a worker lacks counts as zero. One that all of them lack stays None, as with one worker: with
        a zero gradient the optimiser's weight decay would shrink weights that are not trained.
        """
        if self.world_size == 1:
            return
        parameters = list(parameters)
        has_gradient = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        has_gradient = has_gradient.to(self.device)
        dist.all_reduce(has_gradient, dist.ReduceOp.MAX)
        bucket: list[Tensor] = []
        for parameter, anywhere in zip(parameters, has_gradient.tolist(), strict=True):
            if not anywhere:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(grad.numel() for grad in bucket) >= _BUCKET_SIZE:
                _all_reduce_flat(bucket)
                bucket = []
        if bucket:
            _all_reduce_flat(bucket)

    def broadcast(self, value: T | None) -> T:
        """Rank 0's `value` in every process."""
        if self.world_size == 1:
            return value  # type: ignore[return-value]
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]  # type: ignore[no-any-return]

    def on_rank_zero(self, function: Callable[[], T]) -> T:
        """Call `function` in rank 0 and return its result, or raise its `CaptioningError`, in every process."""
        outcome: tuple[T | None, CaptioningError | None] = (None, None)
        if self.rank == 0:
            try:
                outcome = (function(), None)
            except CaptioningError as error:
                outcome = (None, error)
        value, failure = self.broadcast(outcome)
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Every worker's `value` in order of rank, in every process."""
        if self.world_size == 1:
            return [value]
        boxes: list[Any] = [None] * self.world_size
        dist.all_gather_object(boxes, value)
        return boxes


def _all_reduce_flat(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
