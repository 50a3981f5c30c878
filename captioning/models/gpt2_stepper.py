"""GPT-2 driven one token at a time, from a prefix on: a `Stepper` for the decoding engine.

The prefix is read once an image and shared by its hypotheses. What they say is kept side by side,
and a mask tells each which of it is its own past: beams that part or die copy no keys and values, and
what none of them goes back to any more is written over.
Knows embeddings and tokens, not what the prefix was made of. Shapes: B images, N lines of K
hypotheses, R = N · K, P prefix, S places that are kept, E width, H heads, D width of a head.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from captioning.decoding.stepper import as_lines
from captioning.decoding.vocabulary import Vocabulary
from captioning.models.gpt2_weights import Gpt2Weights

#: Steps for which there is room at once. Five beams of 20 tokens need that of eleven.
_STEPS = 12
#: Places are kept by so many, the most that a processor adds up at once: a line's sums are then the same to the last
#: bit, however many places the other lines of its batch need.
_WHOLE = 16


class Gpt2Stepper:
    """A hypothesis's state is its line, and its row of the mask."""

    def __init__(
        self, weights: Gpt2Weights, vocabulary: Vocabulary, prefix: Tensor, *, check_length: Callable[[int], None]
    ) -> None:
        """`prefix` is (B, P, E); `check_length` hears how many positions are to be in use, and may raise."""
        self.vocabulary = vocabulary
        self._weights = weights
        self._prefix = prefix
        self._check_length = check_length
        self._caches: list[_Cache] = []
        self._mask: Tensor | None = None
        self._length = 0
        self._lines = 0

    def start(self) -> Tensor:
        """States (B, E) that tell the first token."""
        self._length = self._prefix.shape[1]
        self._check_length(self._length)
        states, pairs = self._weights.read(self._prefix)
        self._caches = [_Cache(each) for each in pairs]
        self._mask = None
        # None of them has room yet for what is to come.
        self._lines = 0
        return states

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` to the hypotheses `rows`, both (R,) or (N, K); states (R, E)."""
        assert self._length, "start() comes first"
        self._length += 1
        self._check_length(self._length)
        device = self._prefix.device
        lines, ordered = as_lines(rows, device)
        count, beams = lines.shape
        places = self._follow(lines, ordered=ordered)
        words = self._weights.words(torch.as_tensor(tokens, device=device).reshape(count, beams))
        x = self._weights.embed(words, slice(self._length - 1, self._length))
        for block, cache in zip(self._weights.blocks, self._caches, strict=True):
            query, pairs = block.ask(x)
            x = block.answer(x, block.look(query, cache.add(pairs, places), mask=self._mask))
        return self._weights.end(x).flatten(0, 1)

    def _follow(self, lines: Tensor, *, ordered: bool) -> Tensor | None:
        """Make the rows of the step before, N' lines of K', into those that go on, (N, K) of them, named by `lines`.

        Returns the places (R,) of all lines' memory that are for what is said now, or None for the last of each line.
        """
        count, beams = lines.shape
        before = 1 if self._mask is None else self._mask.shape[1]
        owners = torch.div(lines[:, 0], before, rounding_mode="floor")
        if count != self._lines or not ordered:
            for cache in self._caches:
                cache.take(owners, room=beams)
            self._lines = count
        if beams == 1 and self._mask is None:
            # A line is its hypothesis, and sees all of itself.
            for cache in self._caches:
                cache.grow(1)
            return None
        if self._mask is None:
            past = lines.new_zeros(count, beams, self._length - 1, dtype=self._weights.dtype)
        else:
            past = self._mask[owners[:, None], lines - owners[:, None] * before]
        # The places for what is said now: the first of a line that none of its hypotheses sees, or new ones.
        dead = past.isinf().all(dim=1)
        size = dead.shape[1]
        missing = beams - int(dead.sum(dim=1).min())
        new = -(-(size + missing) // _WHOLE) * _WHOLE - size if missing > 0 else 0
        past = functional.pad(past, (0, new), value=-float("inf"))
        dead = functional.pad(dead, (0, new), value=True)
        places = dead.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :beams]
        own = past.new_full((beams, beams), -float("inf")).fill_diagonal_(0)
        self._mask = past.scatter_(2, places[:, None].expand(-1, beams, -1), own.expand(count, -1, -1))
        for cache in self._caches:
            cache.grow(new)
        return (torch.arange(count, device=places.device)[:, None] * self._caches[0].room + places).flatten()


class _Cache:
    """Pairs of keys and values (N, S, 2, H, D) of one block, in memory with room for more places."""

    def __init__(self, pairs: Tensor) -> None:
        self._memory = pairs
        self._size = pairs.shape[1]

    @property
    def room(self) -> int:
        """Places of a line that there is memory for."""
        return self._memory.shape[1]

    def take(self, lines: Tensor, *, room: int) -> None:
        """Those of `lines` alone, in their order, with room for further steps of `room` places."""
        self._make_room(_STEPS * room, lines)

    def grow(self, places: int) -> None:
        """So many places more, which are still to be filled."""
        size = self._size + places
        if size > self.room:
            self._make_room(size)
        # Places that no hypothesis sees are multiplied by nought, too: they must hold numbers.
        self._memory[:, self._size : size] = 0.0
        self._size = size

    def add(self, pairs: Tensor, places: Tensor | None) -> Tensor:
        """Put pairs (N, K, 2, H, D) to `places` (R,) of all lines, or to the last ones; all there is."""
        if places is None:
            self._memory[:, self._size - pairs.shape[1] : self._size] = pairs
        else:
            self._memory.flatten(0, 1).index_copy_(0, places, pairs.flatten(0, 1))
        return self._memory[:, : self._size]

    def _make_room(self, more: int, lines: Tensor | None = None) -> None:
        old = self._memory[:, : self._size]
        count, size, *shape = old.shape
        self._memory = old.new_empty(count if lines is None else len(lines), size + more, *shape)
        self._memory[:, :size] = old if lines is None else old[lines]
