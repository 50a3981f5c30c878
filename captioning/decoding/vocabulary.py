"""The last layer of a decoder: states to the scores of all words, and the best of them.

A vocabulary has tens of thousands of words, of which a search wants the K best a row and the
normaliser. So the product is made a piece of the vocabulary at a time, small enough to stay in a
core's cache while its exponentials are summed and the maxima of its blocks are taken, and the best are
looked for only in the blocks with the highest maxima, where they must be. Shapes: R rows, E state, V words.

What is kept of a logit l is the exponential itself, 2 ** (l / ln 2 - shift), with a shift for each row:
the sum, the maxima and the order need nothing else, and a logit that is asked for is its logarithm again.
Words that are never to be said are left out of it, however high they are, but not of the normaliser.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from captioning.decoding.linear import Linear

#: Words of a block, whose maximum is kept.
_BLOCK = 64
#: Words of a piece, and rows at once: 1.2 MB of float32 logits.
_PIECE, _ROWS = 1536, 192

_NEVER = -float("inf")

#: Exponentials to the base of two are made in a third of the time that others take.
_LOG2E, _LN2 = math.log2(math.e), math.log(2.0)
#: Where a row's highest exponential is put, as a power of two: logits may be 110 lower, or be raised by 60.
_TOP = 40.0
#: Where it may stay: what is not shifted needs no pass over it.
_LOW, _HIGH = 0.0, 60.0
#: Between these a row's sum is what it should be, and nothing that matters was lost below it.
_LOWEST_SUM, _HIGHEST_SUM = 1.0, 2.0**100
#: The highest power of two that is a number.
_MOST = 127.0


class Vocabulary:
    """Words' weights (V, E) and biases (V,), ready to score states."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.size = len(weight)
        #: The type that states must have.
        self.dtype = weight.dtype
        self._on_cpu = weight.device.type == "cpu"
        self._width = _PIECE if self._on_cpu and self.size > _PIECE else _whole_blocks(self.size)
        self._pieces = []
        #: Memory that was used before. Fresh pages cost three times what they are wanted for.
        self._spare: list[Tensor] = []
        # What products are multiplied by to be logarithms to the base of two. The weights themselves are, where they
        # are copied anyway and it costs no digits.
        self._scale = 1.0 if self._on_cpu and weight.dtype == torch.float32 else _LOG2E
        for at in range(0, self.size, self._width):
            part, of_part = weight[at : at + self._width], None if bias is None else bias[at : at + self._width]
            if self._scale == 1:
                part, of_part = part * _LOG2E, None if of_part is None else of_part * _LOG2E
            # Filled up to whole blocks: GPUs multiply an odd number of words at a third of their speed.
            missing = _whole_blocks(len(part)) - len(part)
            if missing:
                of_part = part.new_zeros(len(part)) if of_part is None else of_part
                part = functional.pad(part, (0, 0, 0, missing))
                of_part = functional.pad(of_part, (0, missing), value=_NEVER)
            self._pieces.append(Linear(part, of_part))

    def logits(self, states: Tensor) -> Tensor:
        """Logits (R, V) float32 of states (R, E)."""
        logits = self._logarithms(states)
        return logits if self._scale == _LOG2E else logits.mul_(_LN2)

    def _logarithms(self, states: Tensor) -> Tensor:
        """The same (R, V), which are still to be multiplied by `_scale`."""
        states = states.to(self.dtype)
        return torch.cat([piece(states).float() for piece in self._pieces], dim=1)[:, : self.size]

    def score(self, states: Tensor, never: Sequence[int] = ()) -> "Scores":
        """The scores of all words after states (R, E), of which `never` are ruled out."""
        kept = self._room(len(states), states.device)
        states = states.to(self.dtype)
        # The first piece tells about how high a row's logits are. If it does not, all of them do.
        sums, ruled_out = self._fill(kept, states, never, guess=True)
        if len(self._pieces) > 1 and not bool(((sums > _LOWEST_SUM) & (sums < _HIGHEST_SUM)).all()):
            logits = self._logarithms(states)
            logits[:, list(never)] = _NEVER
            kept.shift.copy_(self._shift(logits))
            sums, ruled_out = self._fill(kept, states, never)
        normaliser = (sums.log2() + kept.shift[:, 0]) * _LN2
        for logit in ruled_out.unbind(1):
            normaliser = normaliser.logaddexp(logit)
        return Scores(kept, normaliser, self.size)

    def release(self, scores: "Scores") -> None:
        """Take back the memory of scores that are not needed any more."""
        if self._on_cpu:
            self._spare[:] = [scores.kept.memory]

    def _fill(
        self, kept: "_Kept", states: Tensor, never: Sequence[int], *, guess: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Make all exponentials and the maxima of their blocks; each row's sum (R,), and its logits (R, M) of `never`.

        `guess` makes the shifts, too.
        """
        count = len(states)
        sums = torch.empty(len(self._pieces), count, device=states.device)
        ruled_out = torch.empty(count, len(never), device=states.device)
        maxima = torch.split(kept.maxima, self._width // _BLOCK, dim=1)
        for low in range(0, count, _ROWS if self._on_cpu else count):
            rows = slice(low, low + _ROWS if self._on_cpu else None)
            some = states[rows]
            for number, piece in enumerate(self._pieces):
                logits = piece(some).float()
                for place, word in enumerate(never):
                    if word // self._width == number:
                        ruled_out[rows, place] = logits[:, word % self._width] * (self._scale * _LN2)
                        logits[:, word % self._width] = _NEVER
                if number == 0:
                    if guess:
                        kept.shift[rows] = self._shift(logits)
                    lower = -kept.shift[rows]
                    as_they_are = self._scale == 1 and not bool(lower.any())
                if not as_they_are:
                    torch.add(lower, logits, alpha=self._scale, out=logits)
                exponentials = kept.exponentials[number, rows, : logits.shape[1]]
                torch.exp2(logits, out=exponentials)
                torch.sum(exponentials, 1, out=sums[number, rows])
                torch.amax(exponentials.view(len(some), -1, _BLOCK), dim=2, out=maxima[number][rows])
        return sums.sum(0), ruled_out

    def _shift(self, logits: Tensor) -> Tensor:
        """Shifts (R, 1) that put the highest of `_logarithms` (R, M) where it should be."""
        height = logits.amax(1, keepdim=True) * self._scale
        return (height - _TOP).masked_fill_((height >= _LOW) & (height <= _HIGH), 0.0)

    def _room(self, rows: int, device: torch.device) -> "_Kept":
        """Memory for the scores of so many rows."""
        shape = len(self._pieces), rows, self._width
        size = math.prod(shape)
        try:
            # One thread alone gets it.
            memory = self._spare.pop()
        except IndexError:
            memory = None
        if memory is None or len(memory) < size:
            # It is to be of use in and out of inference mode.
            with torch.inference_mode(False):
                memory = torch.empty(size, device=device)
        return _Kept(
            memory=memory,
            exponentials=memory[:size].view(shape),
            shift=torch.empty(rows, 1, device=device),
            maxima=torch.empty(rows, _whole_blocks(self.size) // _BLOCK, device=device),
        )


def _whole_blocks(words: int) -> int:
    return -(-words // _BLOCK) * _BLOCK


class _Kept(NamedTuple):
    """What is kept of the logits of R rows."""

    memory: Tensor  # (at least P · R · W,) of which the exponentials are the beginning
    exponentials: Tensor  # (P, R, W) in P pieces, to the base of two and less the shift
    shift: Tensor  # (R, 1)
    maxima: Tensor  # (R, blocks) of the exponentials


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

    def __init__(self, kept: _Kept, normaliser: Tensor, size: int) -> None:
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
        return (self.kept.memory[self._places(words)].log2_() + self.kept.shift).mul_(_LN2)

    def set(self, words: Tensor, logits: Tensor) -> None:
        """Change the logits (R, M) of `words` (R, M). A word that comes twice must be given the same twice."""
        self._changed.append((words, self.of(words)))
        self.kept.memory[self._places(words)] = torch.exp2((logits * _LOG2E - self.kept.shift).clamp_(max=_MOST))
        self._look_again(words)

    def forbid(self, words: Tensor, where: Tensor) -> None:
        """Rule out those of `words` (R, M) `where` (R, M) is true."""
        self._changed.append((words, self.of(words)))
        # A word may be named twice of which once is ruled out: the smaller bound holds.
        bounds = torch.full_like(where, -_NEVER, dtype=self.kept.memory.dtype).masked_fill_(where, 0.0)
        self.kept.memory.scatter_reduce_(0, self._places(words).flatten(), bounds.flatten(), "amin")
        self._look_again(words)

    def best(self, count: int, lead: Tensor) -> Best:
        """The `count` best continuations of each line, or all of them.

        Rows are N lines of K hypotheses, and have a lead (N, K): what their words' log-probabilities are added to.
        """
        lines, each = lead.shape
        maxima = self.kept.maxima
        offsets = (self.kept.shift[:, 0] * _LN2 - self.normaliser) + lead.flatten()
        # They are in the blocks with the highest maxima.
        heights = maxima.log2().mul_(_LN2).add_(offsets[:, None]).view(lines, -1)
        places = heights.topk(min(count, heights.shape[1]), dim=1, sorted=False).indices
        first_rows = self._rows[::each]
        rows, blocks = first_rows + places // maxima.shape[1], places % maxima.shape[1]
        found = self._block(rows, blocks)
        ranks = found.log2().mul_(_LN2).add_(offsets[rows][:, :, None])
        ranks, at = ranks.flatten(1).topk(min(count, each * self._size), dim=1)
        rows = rows.gather(1, at // _BLOCK)
        # What fills up the last block is taken for words where all that is left is ruled out.
        words = (blocks.gather(1, at // _BLOCK) * _BLOCK + at % _BLOCK).clamp_(max=self._size - 1)
        logits = (found.flatten(1).gather(1, at).log2_() + self.kept.shift[:, 0][rows]).mul_(_LN2)
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
        each = width // _BLOCK
        places = (blocks // each * count + rows) * each + blocks % each
        # Whole blocks are copied, not numbers one by one.
        return self.kept.memory.view(-1, _BLOCK).index_select(0, places.flatten()).view(*blocks.shape, _BLOCK)

    def _look_again(self, words: Tensor) -> None:
        """Bring the maxima of the words' blocks up to date."""
        blocks = words // _BLOCK
        self.kept.maxima.scatter_(1, blocks, self._block(self._rows, blocks).amax(2))
