"""The scores of all words by row, the places where they are kept, and the best of them.

What is kept of a logit l is the exponential itself, 2 ** (l / ln 2 - shift), with a shift for each row:
the sum, the maxima and the order need nothing else, and a logit that is asked for is its logarithm again.
The best are looked for only in the blocks with the highest maxima, where they must be. Knows numbers of
words, not how their logits are made. Shapes: R rows, V words, P pieces of the vocabulary of W words each.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Words of a block, whose maximum is kept, and blocks of a group, whose maximum is looked at first.
BLOCK, GROUP = 64, 8
#: Rows whose logits are made at once on a CPU.
_AT_ONCE = 192

#: Exponentials to the base of two are made in a third of the time that others take.
LOG2E, LN2 = math.log2(math.e), math.log(2.0)
#: The highest power of two that is a number.
_MOST = 127.0

#: The logit of a word that is ruled out.
NEVER = -float("inf")


class Part(NamedTuple):
    """The place for what is kept of W words' logits, in some rows."""

    exponentials: Tensor  # (R, W)
    blocks: Tensor  # (R, blocks, words of a block), the same
    sums: Tensor  # (R,)
    maxima: Tensor  # (R, blocks)


class Kept(NamedTuple):
    """What is kept of the logits of R rows."""

    memory: Tensor  # (at least P · R · W,) of which the exponentials are the beginning
    exponentials: Tensor  # (P, R, W) in P pieces, to the base of two and less the shift
    shift: Tensor  # (R, 1)
    sums: Tensor  # (P, R) of the exponentials
    maxima: Tensor  # (R, P · W / words of a block) of the exponentials
    portions: list[tuple[slice, list[Part]]]  # the same by rows at once, and by pieces

    @classmethod
    def of(cls, memory: Tensor, rows: int, width: int, sizes: Sequence[int]) -> "Kept":
        """Room for `rows` of pieces of so many words, which lie `width` apart."""
        exponentials = memory[: len(sizes) * rows * width].view(len(sizes), rows, width)
        # The last piece may be shorter: what follows is as if ruled out.
        exponentials[-1, :, sizes[-1] :] = 0.0
        sums = memory.new_empty(len(sizes), rows)
        maxima = memory.new_zeros(rows, len(sizes), width // BLOCK)
        at_once = _AT_ONCE if memory.device.type == "cpu" else rows
        portions = []
        for low in range(0, rows, at_once):
            some = slice(low, low + at_once)
            parts = []
            for number, size in enumerate(sizes):
                part = exponentials[number, some, :size]
                of_blocks = maxima[some, number, : size // BLOCK]
                parts.append(Part(part, part.view(len(part), -1, BLOCK), sums[number, some], of_blocks))
            portions.append((some, parts))
        return cls(memory, exponentials, memory.new_empty(rows, 1), sums, maxima.flatten(1), portions)


class Best(NamedTuple):
    """The best continuations of N lines of hypotheses, C of each line, best first."""

    ranks: Tensor  # (N, C) what they were chosen by
    parents: Tensor  # (N, C) long, the rows of their lines that they go on from
    words: Tensor  # (N, C) long
    own: Tensor  # (N, C) the model's own log-probability of the word, before any change


class Scores:
    """The logits (R, V) of words by row, which a search may change and takes the best of.

    `normaliser` (R,) is the logarithm of the sum of their exponentials, before any was ruled out or changed.
    """

    def __init__(self, kept: Kept, normaliser: Tensor, size: int) -> None:
        self.normaliser = normaliser
        self.kept = kept
        self._size = size
        self._changed: list[tuple[Tensor, Tensor]] = []
        self._rows = torch.arange(len(normaliser), device=normaliser.device)[:, None]

    @property
    def broken(self) -> Tensor:
        """(R,) bool: whether a logit of the row is no finite number."""
        return ~self.normaliser.isfinite()

    def of(self, words: Tensor) -> Tensor:
        """Logits (R, M) of `words` (R, M), as they stand."""
        return (self.kept.memory[self._places(words)].log2_() + self.kept.shift).mul_(LN2)

    def set(self, words: Tensor, logits: Tensor) -> None:
        """Change the logits (R, M) of `words` (R, M). A word that comes twice must be given the same twice."""
        self._changed.append((words, self.of(words)))
        powers = (logits * LOG2E - self.kept.shift).clamp_(max=_MOST)
        # In float64: in float32 the last few of a tensor, which fill no vector, get other last digits than the rest.
        self.kept.memory[self._places(words)] = powers.double().exp2_().float()
        self._look_again(words)

    def forbid(self, words: Tensor, where: Tensor) -> None:
        """Rule out those of `words` (R, M) `where` (R, M) is true."""
        self._changed.append((words, self.of(words)))
        # A word may be named twice of which once is ruled out: the smaller bound holds.
        bounds = torch.full_like(where, -NEVER, dtype=self.kept.memory.dtype).masked_fill_(where, 0.0)
        self.kept.memory.scatter_reduce_(0, self._places(words).flatten(), bounds.flatten(), "amin")
        self._look_again(words)

    def best(self, count: int, lead: Tensor) -> Best:
        """The `count` best continuations of each line, or all of them.

        Rows are N lines of K hypotheses, and have a lead (N, K): what their words' log-probabilities are added to.
        """
        lines, each = lead.shape
        offsets = (self.kept.shift[:, 0] * LN2 - self.normaliser) + lead.flatten()
        # They are in the blocks with the highest maxima, which are in the groups with the highest.
        maxima = self.kept.maxima.view(len(self._rows), -1, GROUP)
        first_rows = self._rows[::each]
        highest = _ranks(maxima.amax(2), offsets[:, None]).view(lines, -1)
        places = highest.topk(min(count, highest.shape[1]), dim=1, sorted=False).indices
        rows, groups = first_rows + places // maxima.shape[1], places % maxima.shape[1]
        highest = _ranks(maxima[rows, groups], offsets[rows][:, :, None]).flatten(1)
        places = highest.topk(min(count, highest.shape[1]), dim=1, sorted=False).indices
        rows = rows.gather(1, places // GROUP)
        blocks = groups.gather(1, places // GROUP) * GROUP + places % GROUP
        found = self._block(rows, blocks)
        ranks = _ranks(found, offsets[rows][:, :, None]).flatten(1)
        ranks, at = ranks.topk(min(count, each * self._size), dim=1)
        rows = rows.gather(1, at // BLOCK)
        # What fills up the last block is taken for words where all that is left is ruled out.
        words = (blocks.gather(1, at // BLOCK) * BLOCK + at % BLOCK).clamp_(max=self._size - 1)
        logits = (found.flatten(1).gather(1, at).log2_() + self.kept.shift[:, 0][rows]).mul_(LN2)
        own = self._before(rows, words, logits) - self.normaliser[rows]
        return Best(ranks, rows - first_rows, words, own)

    def _before(self, rows: Tensor, words: Tensor, logits: Tensor) -> Tensor:
        """What the model itself gave `words` after `rows`, whose present logits these are, all (N, C)."""
        for named, values in reversed(self._changed):
            same = words[:, :, None] == named[rows]
            at = same.to(torch.uint8).argmax(2)
            logits = torch.where(same.any(2), values[rows, at], logits)
        return logits

    def _places(self, words: Tensor) -> Tensor:
        """Where `words` (R, M) lie in memory."""
        _, rows, width = self.kept.exponentials.shape
        return (words // width * rows + self._rows) * width + words % width

    def _block(self, rows: Tensor, blocks: Tensor) -> Tensor:
        """What is kept (N, M, words of a block) of `blocks` (N, M) of `rows`, (N, M) or (N, 1)."""
        _, count, width = self.kept.exponentials.shape
        each = width // BLOCK
        places = (blocks // each * count + rows) * each + blocks % each
        # Whole blocks are copied, not numbers one by one.
        return self.kept.memory.view(-1, BLOCK).index_select(0, places.flatten()).view(*blocks.shape, BLOCK)

    def _look_again(self, words: Tensor) -> None:
        """Bring the maxima of the words' blocks up to date."""
        blocks = words // BLOCK
        self.kept.maxima.scatter_(1, blocks, self._block(self._rows, blocks).amax(2))


def _ranks(exponentials: Tensor, offsets: Tensor) -> Tensor:
    """What hypotheses would be ranked by, had these words followed theirs."""
    return exponentials.log2().mul_(LN2).add_(offsets)
