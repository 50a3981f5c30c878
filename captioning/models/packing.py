"""Where captions lie when a decoder reads many of them in one row, each seeing only itself and its head.

A head is what comes before a caption (the prefix of its image); the captions of one image share it.
Padded to the longest caption and with a prefix each, two thirds of what a decoder computes would be
for nothing. Knows lengths and places, no tokens and no weights. Shapes: B heads, P length of a head,
N captions, M words read, K targets, R rows, S places in a row.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Rows are filled up to this many places, or to the longest head with its captions.
_ROOM = 64
#: Rows are read in so many groups of like length at most, if there are enough of them.
GROUPS = 2
_ENOUGH = 8

_Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Group:
    """Rows that are read at once: what lies at each place (R, S), its position, and what it sees.

    `source` counts the heads' places first (B · P), then the M words; `positions` are those of the
    position embeddings; `owner` and `part` say whose a place is: a head (part 0) or a caption of it.
    """

    source: Tensor
    positions: Tensor
    owner: Tensor
    part: Tensor

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(R, 1, S, S), added to the scores of attention: 0 where a place sees another, else as low as can be."""
        size = self.owner.shape[1]
        before = torch.ones(size, size, dtype=torch.bool, device=self.owner.device).tril()
        same = self.owner[:, :, None] == self.owner[:, None, :]
        own = (self.part[:, :, None] == self.part[:, None, :]) | (self.part[:, None, :] == 0)
        hidden = ~(before & same & own)[:, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, torch.finfo(dtype).min)


@dataclass(frozen=True)
class Packing:
    """The groups, and for each of the K targets the place whose state predicts it, the groups' places in one line."""

    groups: tuple[Group, ...]
    answers: Tensor


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
    """Lay out N captions of `lengths` targets, each behind head number `heads` (of `num_heads`).

    A caption's words are its targets but the last, and word j comes `head_length` + j behind
    `first_position`, wherever it lies. Targets are in the order of the captions. There are `groups`
    groups, or one where there are few rows.
    """
    targets = np.asarray(lengths, dtype=np.int64)
    words = np.maximum(targets - 1, 0)
    captions_of: dict[int, list[int]] = {}
    for caption, head in enumerate(heads):
        captions_of.setdefault(head, []).append(caption)
    sizes = {head: head_length + int(words[captions].sum()) for head, captions in captions_of.items()}
    rows = _fill(sizes)
    row_sizes = [sum(sizes[head] for head in row) for row in rows]
    count = groups if len(rows) >= _ENOUGH else 1
    bounds = [len(rows) * number // count for number in range(count + 1)]

    head_place = np.zeros(len(targets), dtype=np.int64)
    word_place = np.zeros(len(targets), dtype=np.int64)
    made: list[Group] = []
    begin = 0
    first_word = np.cumsum(words) - words
    for low, high in pairwise(bounds):
        width = max(row_sizes[low:high], default=0)
        filling = _Filling(high - low, width, head_length, first_position)
        for number, row in enumerate(rows[low:high]):
            at = number * width
            for owner, head in enumerate(row):
                filling.put_head(at, owner, head)
                head_place[captions_of[head]] = begin + at + head_length - 1
                at += head_length
                for part, caption in enumerate(captions_of[head], start=1):
                    size = int(words[caption])
                    filling.put_words(at, owner, part, num_heads * head_length + int(first_word[caption]), size)
                    word_place[caption] = begin + at
                    at += size
        made.append(filling.group(device))
        begin += (high - low) * width
    return Packing(tuple(made), torch.from_numpy(_answers(targets, words, head_place, word_place)).to(device))


def _fill(sizes: dict[int, int]) -> list[list[int]]:
    """Heads with their captions into rows, the largest first, each into the row where it fits best; long rows first."""
    room = max([_ROOM, *sizes.values()])
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    for head, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        found = bisect_left(rooms, (size, -1))
        if found < len(rooms):
            left, row = rooms.pop(found)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(head)
        insort(rooms, (left - size, row))
    left_in = {row: left for left, row in rooms}
    return [rows[row] for row in sorted(range(len(rows)), key=lambda row: (left_in[row], row))]


class _Filling:
    """The places of a group while they are filled, in one line."""

    def __init__(self, rows: int, width: int, head_length: int, first_position: int) -> None:
        self._shape = (rows, width)
        self._head = np.arange(head_length)
        self._first = first_position
        # Places that stay empty see one another, so that no row of attention is without anything to see.
        self._values = np.zeros((4, rows * width), dtype=np.int64)
        self._values[2:] = -1

    def put_head(self, at: int, owner: int, head: int) -> None:
        size = len(self._head)
        self._put(at, self._head + head * size, self._head + self._first, owner, 0)

    def put_words(self, at: int, owner: int, part: int, source: int, size: int) -> None:
        steps = np.arange(size)
        self._put(at, steps + source, steps + self._first + len(self._head), owner, part)

    def group(self, device: torch.device | None) -> Group:
        return Group(*torch.from_numpy(self._values).to(device).view(4, *self._shape))

    def _put(self, at: int, source: _Ints, positions: _Ints, owner: int, part: int) -> None:
        values = self._values[:, at : at + len(source)]
        values[0], values[1], values[2], values[3] = source, positions, owner, part


def _answers(targets: _Ints, words: _Ints, head_place: _Ints, word_place: _Ints) -> _Ints:
    """The head's last place predicts a caption's first target, each word the next."""
    first = np.cumsum(targets) - targets
    answers = np.zeros(int(targets.sum()), dtype=np.int64)
    asked = targets > 0
    within = np.arange(int(words.sum())) - np.repeat(np.cumsum(words) - words, words)
    answers[np.repeat(first, words) + within + 1] = np.repeat(word_place, words) + within
    answers[first[asked]] = head_place[asked]
    return answers
