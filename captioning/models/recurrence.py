"""An LSTM's recurrence over captions of unequal length, in training, without computing on padding.

Captions are packed: step by step, in each step those that are long enough, the longest first
(`torch.nn.utils.rnn.PackedSequence`). This recurrence is for CPUs; on GPUs cuDNN's runs. Here the input
products of all steps are one, products run in bfloat16 under autocast (PyTorch's stay in float32), the
cell in float32, and the recurrent weight's gradient is one product, not one a step. Gates are in
PyTorch's order: input, forget, cell, output. Shapes: N captions, T steps, K tokens in all, H hidden.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """How the K tokens of N captions are packed.

    `sizes` are the numbers of captions in each step; `order` (N,) the captions, longest first; `to_packed`
    (K,) indexes tokens in caption order to pack them, and `to_captions` (K,) indexes packed ones to undo it.
    """

    sizes: list[int]
    order: Tensor
    to_packed: Tensor
    to_captions: Tensor

    @staticmethod
    def of(mask: Tensor) -> "Packed":
        """The packing of captions whose tokens are where `mask` (N, T) is true, from the left."""
        lengths = mask.sum(1)
        order = lengths.argsort(descending=True, stable=True)
        steps = torch.arange(mask.shape[1], device=mask.device)[:, None]
        present = lengths[order] > steps
        first_tokens = lengths.cumsum(0) - lengths
        to_packed = (first_tokens[order] + steps)[present]
        sizes = [size for size in present.sum(1).tolist() if size]
        return Packed(sizes, order, to_packed, to_packed.argsort())


def recur(gates: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, packed: Packed) -> Tensor:
    """States (K, H), packed, of an LSTM (Hochreiter & Schmidhuber 1997; forget gates: Gers et al. 2000) on a CPU.

    `gates` (K, 4H), packed, is the contribution of inputs and biases, `hidden` and `cell` (N, H) are the
    captions' initial states in caption order, `weight` (4H, H) is the recurrent weight. Equal to `nn.LSTM`
    up to rounding.
    """
    bf16 = torch.is_autocast_enabled("cpu")
    first = hidden.float()[packed.order], cell.float()[packed.order]
    with torch.autocast("cpu", enabled=False):
        states: Tensor = _Recurrence.apply(gates.float(), *first, weight, packed.sizes, bf16)
    return states


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, sizes: list[int], bf16: bool
    ) -> Tensor:
        captions, width = hidden.shape
        recurrent = weight.to(torch.bfloat16 if bf16 else torch.float32)
        gate_values = gates.clone()
        # The states before each token, then after it.
        previous_states, previous_cells = (gates.new_empty(len(gates), width) for _ in range(2))
        states, cells = (gates.new_empty(len(gates), width) for _ in range(2))
        at = 0
        for size in sizes:
            here = slice(at, at + size)
            previous_states[here], previous_cells[here] = hidden[:size], cell[:size]
            gate = gate_values[here]
            gate += previous_states[here].to(recurrent.dtype) @ recurrent.T
            gate[:, : 2 * width].sigmoid_()
            gate[:, 2 * width : 3 * width].tanh_()
            gate[:, 3 * width :].sigmoid_()
            in_gate, forget_gate, new_cell, out_gate = gate.chunk(4, dim=1)
            cell = torch.mul(forget_gate, previous_cells[here], out=cells[here]).addcmul_(in_gate, new_cell)
            hidden = torch.mul(out_gate, cell.tanh(), out=states[here])
            at += size
        ctx.save_for_backward(gate_values, previous_states, previous_cells, cells, recurrent)
        ctx.sizes, ctx.captions = sizes, captions
        return states

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        gate_values, previous_states, previous_cells, cells, recurrent = ctx.saved_tensors
        sizes: list[int] = ctx.sizes
        width = cells.shape[1]
        gate_grads = torch.empty_like(gate_values)
        hidden_grad, later_cell_grad = (cells.new_zeros(ctx.captions, width) for _ in range(2))
        at = len(cells)
        for size in reversed(sizes):
            at -= size
            here = slice(at, at + size)
            in_gate, forget_gate, new_cell, out_gate = gate_values[here].chunk(4, dim=1)
            tanh = cells[here].tanh()
            # For captions that end at this step the gradients from later steps are still zero.
            state_grad = hidden_grad[:size] + output_grads[0][here]
            cell_grad = later_cell_grad[:size] + state_grad * out_gate * (1 - tanh * tanh)
            gate_grad = gate_grads[here]
            gate_grad[:, :width] = cell_grad * new_cell * in_gate * (1 - in_gate)
            gate_grad[:, width : 2 * width] = cell_grad * previous_cells[here] * forget_gate * (1 - forget_gate)
            gate_grad[:, 2 * width : 3 * width] = cell_grad * in_gate * (1 - new_cell * new_cell)
            gate_grad[:, 3 * width :] = state_grad * tanh * out_gate * (1 - out_gate)
            later_cell_grad[:size] = cell_grad * forget_gate
            hidden_grad[:size] = gate_grad.to(recurrent.dtype) @ recurrent
        weight_grad = (gate_grads.to(recurrent.dtype).T @ previous_states.to(recurrent.dtype)).float()
        return gate_grads, hidden_grad, later_cell_grad, weight_grad, None, None
