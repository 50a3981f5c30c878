"""The training processes as one: sums, broadcasts and gathers over torch.distributed, or nothing for one."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from captioning.errors import CaptioningError

T = TypeVar("T")
#: Gradients are summed in pieces of about this many numbers: few calls, little extra memory.
_BUCKET = 8_000_000


class Workers:
    """This process's place among the training processes."""

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.world = world
        self.device = device or torch.device("cpu")

    def shares(self, count: int) -> range:
        """Which of `count` equal shares of all work are this worker's: all are somebody's, whatever there are of us."""
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    @staticmethod
    def of_process_group(device: torch.device | None = None) -> "Workers":
        """The workers of the process group that has been set up, or this process alone."""
        if not dist.is_initialized():
            return Workers(device=device)
        return Workers(dist.get_rank(), dist.get_world_size(), device)

    def sum(self, value: float) -> float:
        """The sum of every worker's `value`."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums of every worker's `values`, place by place."""
        if self.world == 1:
            return list(values)
        totals = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return totals.tolist()

    def sum_facts(self, facts: Mapping[str, float]) -> dict[str, float]:
        """The sums of every worker's `facts`, name by name; a name that a worker lacks counts as zero."""
        if self.world == 1:
            return dict(facts)
        totals: Counter[str] = Counter()
        for each in self.gather(dict(facts)):
            totals.update(each)
        return dict(totals)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over the workers.

        One that a worker lacks counts as zero; one that all of them lack stays None, as with one worker: a zero would
        have the optimiser's decay shrink weights that learn nothing.
        """
        if self.world == 1:
            return
        parameters = list(parameters)
        there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        there = there.to(self.device)
        dist.all_reduce(there, dist.ReduceOp.MAX)
        bucket: list[Tensor] = []
        for parameter, anywhere in zip(parameters, there.tolist(), strict=True):
            if not anywhere:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(grad.numel() for grad in bucket) >= _BUCKET:
                _sum_together(bucket)
                bucket = []
        if bucket:
            _sum_together(bucket)

    def broadcast(self, value: T | None) -> T:
        """Rank 0's `value` in every process."""
        if self.world == 1:
            return value  # type: ignore[return-value]
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]  # type: ignore[no-any-return]

    def once(self, make: Callable[[], T]) -> T:
        """What `make` gives in rank 0, in every process; its `CaptioningError` is raised in all of them."""
        made: tuple[T | None, CaptioningError | None] = (None, None)
        if self.rank == 0:
            try:
                made = (make(), None)
            except CaptioningError as error:
                made = (None, error)
        value, failure = self.broadcast(made)
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Every worker's `value`, by rank, in every process."""
        if self.world == 1:
            return [value]
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, value)
        return boxes


def _sum_together(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
