"""The last layer of a decoder: states to the scores of all words, and the best of them.

A vocabulary has tens of thousands of words, of which a search wants the K best a row and the
normaliser. So the product is made a piece of the vocabulary at a time, small enough to stay in a
core's cache while it is normalised and the maxima of its blocks are taken, and the best are looked
for only in the blocks with the highest maxima, where they must be. Shapes: R rows, E state, V words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from captioning.decoding.linear import Linear

#: Words of a block, whose maximum is kept.
_BLOCK = 64
#: Words of a piece, and rows at once: 0.8 MB of float32 logits.
_PIECE, _ROWS = 1024, 192

_NEVER = -float("inf")


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
        for at in range(0, self.size, self.width):
            part, of_part = weight[at : at + self.width], None if bias is None else bias[at : at + self.width]
            missing = self.width - len(part)
            if missing:
                of_part = part.new_zeros(len(part)) if of_part is None else of_part
                part = functional.pad(part, (0, 0, 0, missing))
                of_part = functional.pad(of_part, (0, missing), value=_NEVER)
            self._pieces.append(Linear(part, of_part))

    def logits(self, states: Tensor) -> Tensor:
        """Logits (R, V) float32 of states (R, E)."""
        states = states.to(self.dtype)
        return torch.cat([piece(states).float() for piece in self._pieces], dim=1)[:, : self.size]

    def score(self, states: Tensor, used: "Scores | None" = None) -> "Scores":
        """The scores of all words after states (R, E); in the memory of `used`, which are not needed any more."""
        count, pieces = len(states), len(self._pieces)
        room = self._room(count, states.device, used)
        maxima = torch.empty(count, pieces * self.width // _BLOCK, device=states.device)
        normalisers = torch.empty(count, pieces, device=states.device)
        for low in range(0, count, _ROWS if self._on_cpu else count):
            rows = slice(low, low + _ROWS if self._on_cpu else None)
            some = states[rows].to(self.dtype)
            for number, piece in enumerate(self._pieces):
                logits = piece(some).float()
                kept = room[number, rows]
                # Kept as log-probabilities within the piece, since one fused pass makes them, and finds the normaliser.
                torch.log_softmax(logits, 1, out=kept)
                normalisers[rows, number] = logits[:, 0] - kept[:, 0]
                blocks = slice(number * self.width // _BLOCK, (number + 1) * self.width // _BLOCK)
                torch.amax(kept.view(len(kept), -1, _BLOCK), dim=2, out=maxima[rows, blocks])
        maxima = (maxima.view(count, pieces, -1) + normalisers[:, :, None]).flatten(1)
        return Scores(room, normalisers, maxima, self.size)

    def _room(self, rows: int, device: torch.device, used: "Scores | None") -> Tensor:
        """Memory (pieces, R, width). Fresh pages cost as much as a pass over them."""
        shape = len(self._pieces), rows, self.width
        size = shape[0] * shape[1] * shape[2]
        if used is not None and used.room.numel() >= size:
            return used.room.view(-1)[:size].view(shape)
        return torch.empty(shape, device=device)


class Scores:
    """The logits (R, V) of words by row, which a search may change and takes the best of.

    `normaliser` (R,) is the logarithm of the sum of their exponentials, before any change.
    """

    def __init__(self, kept: Tensor, normalisers: Tensor, maxima: Tensor, size: int) -> None:
        """`kept` (P, R, W) are log-probabilities within each of P pieces, whose normalisers are (R, P)."""
        self.normaliser = normalisers.logsumexp(1)
        self.room = kept
        self._normalisers = normalisers
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
        return self.room.view(-1)[self._places(words)] + self._shifts(words)

    def set(self, words: Tensor, logits: Tensor) -> None:
        """Change the logits (R, M) of `words` (R, M). A word that comes twice must be given the same twice."""
        self._changed.append((words, self.of(words)))
        self.room.view(-1)[self._places(words)] = logits - self._shifts(words)
        self._look_again(words)

    def forbid(self, words: Tensor, where: Tensor) -> None:
        """Rule out those of `words` (R, M) `where` (R, M) is true."""
        self._changed.append((words, self.of(words)))
        # A word may be named twice of which once is ruled out: the smaller bound holds.
        bounds = torch.full_like(where, -_NEVER, dtype=self.room.dtype).masked_fill_(where, _NEVER)
        self.room.view(-1).scatter_reduce_(0, self._places(words).flatten(), bounds.flatten(), "amin")
        self._look_again(words)

    def forbid_everywhere(self, words: Sequence[int]) -> None:
        """Rule out words in every row. They are not to be chosen: their own logits are lost."""
        width = self.room.shape[2]
        for word in words:
            self.room[word // width, :, word % width] = _NEVER
        for block in {word // _BLOCK for word in words}:
            piece, at = block * _BLOCK // width, block * _BLOCK % width
            highest = self.room[piece, :, at : at + _BLOCK].amax(1)
            self._maxima[:, block] = highest + self._normalisers[:, piece]

    def best(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` highest logits of each row (R, count), or all, highest first, and their words."""
        count = min(count, self._size)
        blocks = self._maxima.topk(min(count, self._maxima.shape[1]), dim=1, sorted=False).indices
        logits, at = self._block(blocks).flatten(1).topk(count, dim=1)
        return logits, blocks.gather(1, at // _BLOCK) * _BLOCK + at % _BLOCK

    def before(self, words: Tensor, logits: Tensor) -> Tensor:
        """What the model itself gave `words` (R, M), whose present logits (R, M) these are."""
        for named, values in reversed(self._changed):
            same = words[:, :, None] == named[:, None, :]
            at = same.to(torch.uint8).argmax(2)
            logits = torch.where(same.any(2), values.gather(1, at), logits)
        return logits

    def _places(self, words: Tensor) -> Tensor:
        """Where `words` (R, M) lie in what is kept, as a line."""
        _, rows, width = self.room.shape
        return (words // width * rows + self._rows) * width + words % width

    def _shifts(self, words: Tensor) -> Tensor:
        """What makes logits (R, M) of what is kept of `words`."""
        return self._normalisers.gather(1, words // self.room.shape[2])

    def _block(self, blocks: Tensor) -> Tensor:
        """The logits (R, M, words of a block) of `blocks` (R, M)."""
        _, rows, width = self.room.shape
        each = width // _BLOCK
        places = (blocks // each * rows + self._rows) * each + blocks % each
        # Whole blocks are copied, not numbers one by one.
        found = self.room.view(-1, _BLOCK).index_select(0, places.flatten()).view(*blocks.shape, _BLOCK)
        return found + self._normalisers.gather(1, blocks // each)[:, :, None]

    def _look_again(self, words: Tensor) -> None:
        """Bring the maxima of the words' blocks up to date."""
        blocks = words // _BLOCK
        self._maxima.scatter_(1, blocks, self._block(blocks).amax(2))
