"""An LSTM's recurrence over captions of unequal length, in training: no work on pads.

Captions are packed: step by step, in each step those that are long enough, the longest first
(`torch.nn.utils.rnn.PackedSequence`). On a CPU the recurrence is our own: what the steps share is
multiplied once, products run in bfloat16 where autocast asks for it (PyTorch's stay in float32
there), the cell in float32, and the recurrent weight's gradient is one product, not one a step.
Elsewhere it is cuDNN's. Gates lie in PyTorch's order: input, forget, cell, output. Knows nothing of
words or images. Shapes: N captions, T steps, K tokens in all, H hidden.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """How the K tokens of N captions are packed.

    `sizes` are the captions in each step; `order` (N,) the captions, longest first; `to_packed` (K,)
    the place, among tokens caption by caption, of each packed one, and `to_captions` (K,) the way back.
    """

    sizes: list[int]
    order: Tensor
    to_packed: Tensor
    to_captions: Tensor

    @staticmethod
    def of(asked: Tensor) -> "Packed":
        """The packing of captions whose tokens are where `asked` (N, T) is true, from the left."""
        lengths = asked.sum(1)
        order = lengths.argsort(descending=True, stable=True)
        steps = torch.arange(asked.shape[1], device=asked.device)[:, None]
        there = lengths[order] > steps
        firsts = lengths.cumsum(0) - lengths
        to_packed = (firsts[order] + steps)[there]
        sizes = [size for size in there.sum(1).tolist() if size]
        return Packed(sizes, order, to_packed, to_packed.argsort())


def recur(gates: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, packed: Packed) -> Tensor:
    """States (K, H), packed, of an LSTM (Hochreiter & Schmidhuber 1997; forget gates: Gers et al. 2000) on a CPU.

    `gates` (K, 4H), packed, is what inputs and biases add to the gates, `hidden` and `cell` (N, H)
    the captions' first states in their own order, `weight` (4H, H) the recurrent weight. Equal to
    `nn.LSTM` but for rounding.
    """
    low = torch.is_autocast_enabled("cpu")
    first = hidden.float()[packed.order], cell.float()[packed.order]
    with torch.autocast("cpu", enabled=False):
        states: Tensor = _Recurrence.apply(gates.float(), *first, weight, packed.sizes, low)
    return states


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, sizes: list[int], low: bool
    ) -> Tensor:
        captions, width = hidden.shape
        used = weight.to(torch.bfloat16 if low else torch.float32)
        active = gates.clone()
        # The state before each token, then after it.
        before_state, before_cell = (gates.new_empty(len(gates), width) for _ in range(2))
        states, cells = (gates.new_empty(len(gates), width) for _ in range(2))
        at = 0
        for size in sizes:
            here = slice(at, at + size)
            before_state[here], before_cell[here] = hidden[:size], cell[:size]
            gate = active[here]
            gate += before_state[here].to(used.dtype) @ used.T
            gate[:, : 2 * width].sigmoid_()
            gate[:, 2 * width : 3 * width].tanh_()
            gate[:, 3 * width :].sigmoid_()
            enter, forget, new, out = gate.chunk(4, dim=1)
            cell = torch.mul(forget, before_cell[here], out=cells[here]).addcmul_(enter, new)
            hidden = torch.mul(out, cell.tanh(), out=states[here])
            at += size
        ctx.save_for_backward(active, before_state, before_cell, cells, used)
        ctx.sizes, ctx.captions = sizes, captions
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        active, before_state, before_cell, cells, used = ctx.saved_tensors
        sizes: list[int] = ctx.sizes
        width = cells.shape[1]
        slopes = torch.empty_like(active)
        hidden, cell = (cells.new_zeros(ctx.captions, width) for _ in range(2))
        at = len(cells)
        for size in reversed(sizes):
            at -= size
            here = slice(at, at + size)
            enter, forget, new, out = active[here].chunk(4, dim=1)
            tanh = cells[here].tanh()
            # Captions that end here have had nothing come back so far.
            state = hidden[:size] + grads[0][here]
            inner = cell[:size] + state * out * (1 - tanh * tanh)
            slope = slopes[here]
            slope[:, :width] = inner * new * enter * (1 - enter)
            slope[:, width : 2 * width] = inner * before_cell[here] * forget * (1 - forget)
            slope[:, 2 * width : 3 * width] = inner * enter * (1 - new * new)
            slope[:, 3 * width :] = state * tanh * out * (1 - out)
            cell[:size] = inner * forget
            hidden[:size] = slope.to(used.dtype) @ used
        weight = (slopes.to(used.dtype).T @ before_state.to(used.dtype)).float()
        return slopes, hidden, cell, weight, None, None
