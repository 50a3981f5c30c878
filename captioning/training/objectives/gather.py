"""Rows of every worker in every worker, with gradients back to those who made them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from captioning.training.workers import Workers


def gather_rows(rows: Tensor, sizes: Sequence[int], workers: Workers) -> list[Tensor]:
    """The `rows` (n, D) of each worker, by rank; `sizes` says how many each has.

    Backward, each worker gets the sum of what all of them have for its rows. So all must go
    forward and backward through here equally often, those without rows too, whose `rows` (0, D)
    then need a gradient for it.
    """
    if workers.world == 1:
        return [rows]
    longest = max(sizes)
    every: Tensor = _Gather.apply(rows, longest, workers.rank, workers.world)
    return [part[:size] for part, size in zip(torch.split(every, longest), sizes, strict=True)]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, longest: int, rank: int, world: int) -> Tensor:
        ctx.own = slice(rank * longest, rank * longest + len(rows))
        padded = torch.cat([rows, rows.new_zeros(longest - len(rows), rows.shape[1])])
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.own], None, None, None
