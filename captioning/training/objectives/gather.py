"""A differentiable all-gather of rows."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from captioning.training.workers import Workers


def gather_rows(rows: Tensor, sizes: Sequence[int], workers: Workers) -> list[Tensor]:
    """The `rows` (n, D) of every worker in order of rank; `sizes` holds each worker's n.

    In backward each worker gets the sum of all workers' gradients for its rows. All workers must therefore
    run forward and backward equally often, including those with no rows: their `rows` (0, D) must require
    a gradient.
    """
    if workers.world_size == 1:
        return [rows]
    longest = max(sizes)
    gathered: Tensor = _Gather.apply(rows, longest, workers.rank, workers.world_size)
    return [part[:size] for part, size in zip(torch.split(gathered, longest), sizes, strict=True)]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, longest: int, rank: int, world_size: int) -> Tensor:
        ctx.own = slice(rank * longest, rank * longest + len(rows))
        padded = torch.cat([rows, rows.new_zeros(longest - len(rows), rows.shape[1])])
        parts = [torch.empty_like(padded) for _ in range(world_size)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.own], None, None, None
