"""The last layer of a decoder: states to the scores of all words.

A vocabulary has tens of thousands of words, of which a search wants the K best a row and the
normaliser. So the product is made a piece of the vocabulary at a time, small enough to stay in a
core's cache while its exponentials are summed and the maxima of its blocks are taken.
Words that are never to be said are left out of what is kept, however high they are, but not of the
normaliser. Shapes: R rows, E state, V words.
"""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import functional

from captioning.decoding.linear import Linear
from captioning.decoding.scores import BLOCK, GROUP, LN2, LOG2E, NEVER, Kept, Scores

#: Words of a piece, in whole groups: with as many rows as are taken at once, 1.6 MB of float32 logits.
_PIECE = 2048

#: Where a row's highest exponential is put, as a power of two: logits may be 110 lower, or be raised by 60.
_TOP = 40.0
#: Where it may stay: what is not shifted needs no pass over it.
_LOW, _HIGH = 0.0, 60.0
#: Between these a row's sum is what it should be, and nothing that matters was lost below it.
_LOWEST_SUM, _HIGHEST_SUM = 1.0, 2.0**100


class Vocabulary:
    """Words' weights (V, E) and biases (V,), ready to score states."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.size = len(weight)
        #: The type that states must have.
        self.dtype = weight.dtype
        self._on_cpu = weight.device.type == "cpu"
        self._width = _PIECE if self._on_cpu and self.size > _PIECE else _whole(self.size, BLOCK * GROUP)
        self._pieces = []
        #: What was used before. Fresh pages cost three times what they are wanted for.
        self._spare: list[Kept] = []
        # What products are multiplied by to be logarithms to the base of two. The weights themselves are, where they
        # are copied anyway and it costs no digits.
        self._scale = 1.0 if self._on_cpu and weight.dtype == torch.float32 else LOG2E
        for at in range(0, self.size, self._width):
            part, of_part = weight[at : at + self._width], None if bias is None else bias[at : at + self._width]
            if self._scale == 1:
                part, of_part = part * LOG2E, None if of_part is None else of_part * LOG2E
            # Filled up to whole blocks: GPUs multiply an odd number of words at a third of their speed.
            missing = _whole(len(part), BLOCK) - len(part)
            if missing:
                of_part = part.new_zeros(len(part)) if of_part is None else of_part
                part = functional.pad(part, (0, 0, 0, missing))
                of_part = functional.pad(of_part, (0, missing), value=NEVER)
            self._pieces.append(Linear(part, of_part))

    def logits(self, states: Tensor) -> Tensor:
        """Logits (R, V) float32 of states (R, E)."""
        logits = self._logarithms(states)
        return logits if self._scale == LOG2E else logits.mul_(LN2)

    def _logarithms(self, states: Tensor) -> Tensor:
        """The same (R, V), which are still to be multiplied by `_scale`."""
        states = states.to(self.dtype)
        return torch.cat([piece(states).float() for piece in self._pieces], dim=1)[:, : self.size]

    def score(self, states: Tensor, never: Sequence[int] = ()) -> Scores:
        """The scores of all words after states (R, E), of which `never` are ruled out."""
        kept = self._room(len(states), states.device)
        states = states.to(self.dtype)
        # The first piece tells about how high a row's logits are. If it does not, all of them do.
        sums, ruled_out = self._fill(kept, states, never, guess=True)
        if len(self._pieces) > 1 and not bool(((sums > _LOWEST_SUM) & (sums < _HIGHEST_SUM)).all()):
            logits = self._logarithms(states)
            logits[:, list(never)] = NEVER
            kept.shift.copy_(self._shift(logits))
            sums, ruled_out = self._fill(kept, states, never)
        normaliser = (sums.log2() + kept.shift[:, 0]) * LN2
        if never:
            # In float64: in float32 the last few rows, which fill no vector, get other last digits than the rest.
            normaliser = torch.cat((normaliser[:, None], ruled_out), dim=1).double().logsumexp(1).float()
        return Scores(kept, normaliser, self.size)

    def release(self, scores: Scores) -> None:
        """Take back the memory of scores that are not needed any more."""
        if self._on_cpu:
            self._spare[:] = [scores.kept]

    def _fill(self, kept: Kept, states: Tensor, never: Sequence[int], *, guess: bool = False) -> tuple[Tensor, Tensor]:
        """Make all exponentials and the maxima of their blocks; each row's sum (R,), and its logits (R, M) of `never`.

        `guess` makes the shifts, too.
        """
        ruled_out = torch.empty(len(states), len(never), device=states.device)
        for rows, parts in kept.portions:
            some = states[rows]
            for number, (piece, part) in enumerate(zip(self._pieces, parts, strict=True)):
                logits = piece(some).float()
                for place, word in enumerate(never):
                    if word // self._width == number:
                        ruled_out[rows, place] = logits[:, word % self._width] * (self._scale * LN2)
                        logits[:, word % self._width] = NEVER
                if number == 0:
                    if guess:
                        kept.shift[rows] = self._shift(logits)
                    lower = -kept.shift[rows]
                    as_they_are = self._scale == 1 and not bool(lower.any())
                if not as_they_are:
                    torch.add(lower, logits, alpha=self._scale, out=logits)
                torch.exp2(logits, out=part.exponentials)
                torch.sum(part.exponentials, 1, out=part.sums)
                torch.amax(part.blocks, 2, out=part.maxima)
        return kept.sums.sum(0), ruled_out

    def _shift(self, logits: Tensor) -> Tensor:
        """Shifts (R, 1) that put the highest of `_logarithms` (R, M) where it should be."""
        height = logits.amax(1, keepdim=True) * self._scale
        return (height - _TOP).masked_fill_((height >= _LOW) & (height <= _HIGH), 0.0)

    def _room(self, rows: int, device: torch.device) -> Kept:
        """Memory for the scores of so many rows."""
        memory = None
        # One thread alone gets what is there.
        with suppress(IndexError):
            spare = self._spare.pop()
            if len(spare.shift) == rows:
                return spare
            memory = spare.memory
        size = len(self._pieces) * rows * self._width
        # It is to be of use in and out of inference mode.
        with torch.inference_mode(False):
            if memory is None or len(memory) < size:
                memory = torch.empty(size, device=device)
            return Kept.of(memory, rows, self._width, [piece.size for piece in self._pieces])


def _whole(words: int, of: int) -> int:
    return -(-words // of) * of
