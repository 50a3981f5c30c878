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
        # Filled up to whole blocks: GPUs multiply an odd number of words at a third of their speed.
        self.width = _PIECE if self._on_cpu and self.size > _PIECE else -(-self.size // _BLOCK) * _BLOCK
        self._pieces = []
        # What products are multiplied by to be logarithms to the base of two. The weights themselves are, where they
        # are copied anyway and it costs no digits.
        self._scale = 1.0 if self._on_cpu and weight.dtype == torch.float32 else _LOG2E
        for at in range(0, self.size, self.width):
            part, of_part = weight[at : at + self.width], None if bias is None else bias[at : at + self.width]
            if self._scale == 1:
                part, of_part = part * _LOG2E, None if of_part is None else of_part * _LOG2E
            missing = self.width - len(part)
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

    def score(self, states: Tensor, never: Sequence[int] = (), used: "Scores | None" = None) -> "Scores":
        """The scores of all words after states (R, E), of which `never` are ruled out.

        They lie in the memory of `used`, which are not needed any more.
        """
        count, pieces = len(states), len(self._pieces)
        room = self._room(count, states.device, used)
        maxima = torch.empty(count, pieces * self.width // _BLOCK, device=states.device)
        ruled_out = torch.empty(count, len(never), device=states.device)
        states = states.to(self.dtype)
        # The first piece tells about how high a row's logits are. If it does not, all of them do.
        shift = torch.empty(count, 1, device=states.device)
        sums = self._fill(states, never, shift, room, maxima, ruled_out, guess=True)
        if pieces > 1 and not bool(((sums > _LOWEST_SUM) & (sums < _HIGHEST_SUM)).all()):
            logits = self._logarithms(states)
            logits[:, list(never)] = _NEVER
            shift = self._shift(logits)
            sums = self._fill(states, never, shift, room, maxima, ruled_out)
        normaliser = (sums.log2() + shift[:, 0]) * _LN2
        for logit in ruled_out.unbind(1):
            normaliser = normaliser.logaddexp(logit)
        return Scores(room, shift, normaliser, maxima, self.size)

    def _fill(
        self,
        states: Tensor,
        never: Sequence[int],
        shift: Tensor,
        room: Tensor,
        maxima: Tensor,
        ruled_out: Tensor,
        *,
        guess: bool = False,
    ) -> Tensor:
        """Make all exponentials and the maxima of their blocks; each row's sum (R,).

        `ruled_out` (R, M) are to be the logits of the M words `never`. `guess` makes the shifts, too.
        """
        count = len(states)
        sums = torch.empty(len(self._pieces), count, device=states.device)
        blocks = maxima.view(count, len(self._pieces), -1).unbind(1)
        for low in range(0, count, _ROWS if self._on_cpu else count):
            rows = slice(low, low + _ROWS if self._on_cpu else None)
            some = states[rows]
            for number, (piece, kept, total) in enumerate(zip(self._pieces, room[:, rows], sums[:, rows], strict=True)):
                logits = piece(some).float()
                for place, word in enumerate(never):
                    if word // self.width == number:
                        ruled_out[rows, place] = logits[:, word % self.width] * (self._scale * _LN2)
                        logits[:, word % self.width] = _NEVER
                if number == 0:
                    if guess:
                        shift[rows] = self._shift(logits)
                    lower = -shift[rows]
                    as_they_are = self._scale == 1 and not bool(lower.any())
                if not as_they_are:
                    torch.add(lower, logits, alpha=self._scale, out=logits)
                torch.exp2(logits, out=kept)
                torch.sum(kept, 1, out=total)
                torch.amax(kept.view(len(kept), -1, _BLOCK), dim=2, out=blocks[number][rows])
        return sums.sum(0)

    def _shift(self, logits: Tensor) -> Tensor:
        """Shifts (R, 1) that put the highest of `_logarithms` (R, M) where it should be."""
        height = logits.amax(1, keepdim=True) * self._scale
        return (height - _TOP).masked_fill_((height >= _LOW) & (height <= _HIGH), 0.0)

    def _room(self, rows: int, device: torch.device, used: "Scores | None") -> Tensor:
        """Memory (pieces, R, width). Fresh pages cost as much as a pass over them."""
        shape = len(self._pieces), rows, self.width
        size = shape[0] * shape[1] * shape[2]
        if used is not None and used.room.numel() >= size:
            return used.room.view(-1)[:size].view(shape)
        return torch.empty(shape, device=device)


class Scores:
    """The logits (R, V) of words by row, which a search may change and takes the best of.

    `normaliser` (R,) is the logarithm of the sum of their exponentials, before any was ruled out or changed.
    """

    def __init__(self, kept: Tensor, shift: Tensor, normaliser: Tensor, maxima: Tensor, size: int) -> None:
        """`kept` (P, R, W) are exponentials in P pieces, to the base of two and less `shift` (R, 1)."""
        self.normaliser = normaliser
        self.room = kept
        self._shift = shift
        self._maxima = maxima
        self._size = size
        self._changed: list[tuple[Tensor, Tensor]] = []
        self._rows = torch.arange(len(maxima), device=maxima.device)[:, None]

    @property
    def broken(self) -> Tensor:
        """(R,) bool: whether a logit of the row is no finite number."""
        return ~self.normaliser.isfinite()

    def of(self, words: Tensor) -> Tensor:
        """Logits (R, M) of `words` (R, M), as they stand."""
        return self._logits(self.room.view(-1)[self._places(words)])

    def set(self, words: Tensor, logits: Tensor) -> None:
        """Change the logits (R, M) of `words` (R, M). A word that comes twice must be given the same twice."""
        self._changed.append((words, self.of(words)))
        self.room.view(-1)[self._places(words)] = torch.exp2((logits * _LOG2E - self._shift).clamp_(max=_MOST))
        self._look_again(words)

    def forbid(self, words: Tensor, where: Tensor) -> None:
        """Rule out those of `words` (R, M) `where` (R, M) is true."""
        self._changed.append((words, self.of(words)))
        # A word may be named twice of which once is ruled out: the smaller bound holds.
        bounds = torch.full_like(where, -_NEVER, dtype=self.room.dtype).masked_fill_(where, 0.0)
        self.room.view(-1).scatter_reduce_(0, self._places(words).flatten(), bounds.flatten(), "amin")
        self._look_again(words)

    def best(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` highest logits of each row (R, count), or all, highest first, and their words."""
        count = min(count, self._size)
        blocks = self._maxima.topk(min(count, self._maxima.shape[1]), dim=1, sorted=False).indices
        kept, at = self._block(blocks).flatten(1).topk(count, dim=1)
        return self._logits(kept), blocks.gather(1, at // _BLOCK) * _BLOCK + at % _BLOCK

    def before(self, words: Tensor, logits: Tensor) -> Tensor:
        """What the model itself gave `words` (R, M), whose present logits (R, M) these are."""
        for named, values in reversed(self._changed):
            same = words[:, :, None] == named[:, None, :]
            at = same.to(torch.uint8).argmax(2)
            logits = torch.where(same.any(2), values.gather(1, at), logits)
        return logits

    def _logits(self, kept: Tensor) -> Tensor:
        """Logits (R, M) of what is kept of them."""
        return (kept.log2() + self._shift) * _LN2

    def _places(self, words: Tensor) -> Tensor:
        """Where `words` (R, M) lie in what is kept, as a line."""
        _, rows, width = self.room.shape
        return (words // width * rows + self._rows) * width + words % width

    def _block(self, blocks: Tensor) -> Tensor:
        """What is kept (R, M, words of a block) of `blocks` (R, M)."""
        _, rows, width = self.room.shape
        each = width // _BLOCK
        places = (blocks // each * rows + self._rows) * each + blocks % each
        # Whole blocks are copied, not numbers one by one.
        return self.room.view(-1, _BLOCK).index_select(0, places.flatten()).view(*blocks.shape, _BLOCK)

    def _look_again(self, words: Tensor) -> None:
        """Bring the maxima of the words' blocks up to date."""
        blocks = words // _BLOCK
        self._maxima.scatter_(1, blocks, self._block(blocks).amax(2))
