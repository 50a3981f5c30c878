"""Sequence packing: many captions in one row of a decoder's input, each attending only to itself and its head.

A head is what precedes a caption (the prefix of its image); the captions of one image share it.
Padded to the longest caption and with a prefix each, two thirds of what a decoder computes would be
wasted. Shapes: B heads, P length of a head, N captions, M input tokens, K targets, R rows, S places
in a row.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Places in a row, or as many as the longest head with its captions needs.
_ROW_SIZE = 64
#: Rows are split into this many groups of similar length, if there are at least `_MIN_ROWS` of them.
GROUPS = 2
_MIN_ROWS = 8

_Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Group:
    """Rows that run as one batch: for each place (R, S) its input, its position, and what it belongs to.

    `source` indexes the embeddings of the heads (B · P) followed by the M input tokens; `positions` are those
    of the position embeddings; `owner` numbers the heads of a row, and `part` is 0 for a head and 1, 2, … for its
    captions. Both are -1 for padding.
    """

    source: Tensor
    positions: Tensor
    owner: Tensor
    part: Tensor

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(R, 1, S, S), added to attention scores: 0 where a place attends to another, else the lowest number."""
        size = self.owner.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=self.owner.device).tril()
        same = self.owner[:, :, None] == self.owner[:, None, :]
        own = (self.part[:, :, None] == self.part[:, None, :]) | (self.part[:, None, :] == 0)
        hidden = ~(causal & same & own)[:, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, torch.finfo(dtype).min)


@dataclass(frozen=True)
class Packing:
    """The groups, and for each target (K,) the place that predicts it, in the groups' flattened and joined rows."""

    groups: tuple[Group, ...]
    target_places: Tensor


def pack(
    lengths: Sequence[int],
    heads: Sequence[int],
    *,
    num_heads: int,
    head_length: int,
    first_position: int = 0,
    groups: int = GROUPS,
    device: torch.device | None = None,
) -> Packing:
    """Pack N captions of `lengths` targets, each behind head number `heads` (of `num_heads`).

    The input tokens of a caption are its targets but the last, and token j has the position `first_position`
    + `head_length` + j, wherever it is packed. Targets are in the order of the captions. There are `groups`
    groups, or one where there are few rows.
    """
    targets = np.asarray(lengths, dtype=np.int64)
    inputs = np.maximum(targets - 1, 0)
    captions_of: dict[int, list[int]] = {}
    for caption, head in enumerate(heads):
        captions_of.setdefault(head, []).append(caption)
    sizes = {head: head_length + int(inputs[captions].sum()) for head, captions in captions_of.items()}
    rows = _fill_rows(sizes)
    row_sizes = [sum(sizes[head] for head in row) for row in rows]
    count = groups if len(rows) >= _MIN_ROWS else 1
    bounds = [len(rows) * number // count for number in range(count + 1)]

    head_place = np.zeros(len(targets), dtype=np.int64)
    input_place = np.zeros(len(targets), dtype=np.int64)
    packed: list[Group] = []
    start = 0
    first_input = np.cumsum(inputs) - inputs
    for low, high in pairwise(bounds):
        width = max(row_sizes[low:high], default=0)
        places = _Places(high - low, width, head_length, first_position)
        for number, row in enumerate(rows[low:high]):
            at = number * width
            for owner, head in enumerate(row):
                places.put_head(at, owner, head)
                head_place[captions_of[head]] = start + at + head_length - 1
                at += head_length
                for part, caption in enumerate(captions_of[head], start=1):
                    size = int(inputs[caption])
                    places.put_inputs(at, owner, part, num_heads * head_length + int(first_input[caption]), size)
                    input_place[caption] = start + at
                    at += size
        packed.append(places.group(device))
        start += (high - low) * width
    return Packing(tuple(packed), torch.from_numpy(_target_places(targets, inputs, head_place, input_place)).to(device))


def _fill_rows(sizes: dict[int, int]) -> list[list[int]]:
    """Pack heads with their captions into rows by best-fit decreasing bin packing; returns the fullest rows first."""
    row_size = max([_ROW_SIZE, *sizes.values()])
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # places left and row, in order
    for head, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        found = bisect_left(free, (size, -1))
        if found < len(free):
            left, row = free.pop(found)
        else:
            left, row = row_size, len(rows)
            rows.append([])
        rows[row].append(head)
        insort(free, (left - size, row))
    left_of = {row: left for left, row in free}
    return [rows[row] for row in sorted(range(len(rows)), key=lambda row: (left_of[row], row))]


class _Places:
    """The places of a group, flattened, while they are filled."""

    def __init__(self, rows: int, width: int, head_length: int, first_position: int) -> None:
        self._shape = (rows, width)
        self._head = np.arange(head_length)
        self._first = first_position
        # Padding attends to padding, so that no row of attention is empty.
        self._values = np.zeros((4, rows * width), dtype=np.int64)
        self._values[2:] = -1

    def put_head(self, at: int, owner: int, head: int) -> None:
        size = len(self._head)
        self._put(at, self._head + head * size, self._head + self._first, owner, 0)

    def put_inputs(self, at: int, owner: int, part: int, source: int, size: int) -> None:
        steps = np.arange(size)
        self._put(at, steps + source, steps + self._first + len(self._head), owner, part)

    def group(self, device: torch.device | None) -> Group:
        return Group(*torch.from_numpy(self._values).to(device).view(4, *self._shape))

    def _put(self, at: int, source: _Ints, positions: _Ints, owner: int, part: int) -> None:
        values = self._values[:, at : at + len(source)]
        values[0], values[1], values[2], values[3] = source, positions, owner, part


def _target_places(targets: _Ints, inputs: _Ints, head_place: _Ints, input_place: _Ints) -> _Ints:
    """The place (K,) that predicts each target: the head's last one for the first, each input token for the next."""
    first = np.cumsum(targets) - targets
    places = np.zeros(int(targets.sum()), dtype=np.int64)
    nonempty = targets > 0
    within = np.arange(int(inputs.sum())) - np.repeat(np.cumsum(inputs) - inputs, inputs)
    places[np.repeat(first, inputs) + within + 1] = np.repeat(input_place, inputs) + within
    places[first[nonempty]] = head_place[nonempty]
    return places
