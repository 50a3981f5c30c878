"""The output layer of a decoder: hidden states to next-token scores over the vocabulary.

A vocabulary has tens of thousands of tokens, of which a search needs only the K best of each row and the
normaliser. So the product is computed a tile of the vocabulary at a time, small enough to stay in a core's
cache while its exponentials are summed and the maxima of its blocks taken. Banned tokens are left out of the
stored scores, however high they are, but not out of the normaliser. Shapes: R rows, E state, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import functional

from captioning.decoding.linear import Linear
from captioning.decoding.scores import BLOCK, LN2, LOG2E, NEG_INF, SUPERBLOCK, ScoreBuffers, Scores

#: Tokens in a tile, in whole superblocks: 1.6 MB of float32 logits for the rows that are processed at once.
_TILE = 2048

#: The power of two that a row's highest exponential is shifted to: logits may be 110 lower, or be raised by 60.
_TARGET = 40.0
#: Rows whose highest power is in this range are not shifted, which saves a pass over them.
_LOW, _HIGH = 0.0, 60.0
#: In this range a row's sum is exact, and nothing that matters underflowed.
_LOWEST_SUM, _HIGHEST_SUM = 1.0, 2.0**100


class LMHead:
    """A language-model head, weights (V, E) and biases (V,), ready to score states."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.vocab_size = len(weight)
        #: The type that states must have.
        self.dtype = weight.dtype
        self._on_cpu = weight.device.type == "cpu"
        tiled = self._on_cpu and self.vocab_size > _TILE
        self._width = _TILE if tiled else _round_up(self.vocab_size, BLOCK * SUPERBLOCK)
        self._tiles = []
        #: Released buffers, to be used again: page faults in fresh memory cost three times as much as the scores.
        self._spare: list[ScoreBuffers] = []
        # What products are multiplied by to become logarithms to base two. float32 weights on a CPU are scaled
        # themselves, since packing copies them anyway and no precision is lost.
        self._scale = 1.0 if self._on_cpu and weight.dtype == torch.float32 else LOG2E
        for start in range(0, self.vocab_size, self._width):
            end = start + self._width
            tile, tile_bias = weight[start:end], None if bias is None else bias[start:end]
            if self._scale == 1:
                tile, tile_bias = tile * LOG2E, None if tile_bias is None else tile_bias * LOG2E
            # Padded to whole blocks: GPUs multiply an odd number of tokens at a third of their speed.
            missing = _round_up(len(tile), BLOCK) - len(tile)
            if missing:
                tile_bias = tile.new_zeros(len(tile)) if tile_bias is None else tile_bias
                tile = functional.pad(tile, (0, 0, 0, missing))
                tile_bias = functional.pad(tile_bias, (0, missing), value=NEG_INF)
            self._tiles.append(Linear(tile, tile_bias))

    def logits(self, states: Tensor) -> Tensor:
        """Logits (R, V) float32 of states (R, E)."""
        logits = self._products(states)
        return logits if self._scale == LOG2E else logits.mul_(LN2)

    def _products(self, states: Tensor) -> Tensor:
        """Logits (R, V) float32 over `_scale`, in units of ln 2."""
        states = states.to(self.dtype)
        return torch.cat([tile(states).float() for tile in self._tiles], dim=1)[:, : self.vocab_size]

    def score(self, states: Tensor, banned: Sequence[int] = ()) -> Scores:
        """The scores of all tokens after states (R, E), with the `banned` ones forbidden."""
        buffers = self._take_buffers(len(states), states.device)
        states = states.to(self.dtype)
        # The first tile usually gives a good shift for a row's logits. Where it does not, all tiles are used.
        sums, banned_logits = self._fill(buffers, states, banned, estimate_shift=True)
        if len(self._tiles) > 1 and not bool(((sums > _LOWEST_SUM) & (sums < _HIGHEST_SUM)).all()):
            products = self._products(states)
            products[:, list(banned)] = NEG_INF
            buffers.shift.copy_(self._shift(products))
            sums, banned_logits = self._fill(buffers, states, banned)
        logsumexp = (sums.log2() + buffers.shift[:, 0]) * LN2
        if banned:
            # In float64: the float32 kernel rounds the last rows, which fill no vector, differently from the rest.
            logsumexp = torch.cat((logsumexp[:, None], banned_logits), dim=1).double().logsumexp(1).float()
        return Scores(buffers, logsumexp, self.vocab_size)

    def release(self, scores: Scores) -> None:
        """Reuse the memory of `scores`, which are no longer needed."""
        if self._on_cpu:
            self._spare[:] = [scores.buffers]

    def _fill(
        self, buffers: ScoreBuffers, states: Tensor, banned: Sequence[int], *, estimate_shift: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Compute exponentials and block maxima; returns each row's sum (R,) and its logits (R, M) of `banned`.

        `estimate_shift` also sets the shifts, by the first tile.
        """
        banned_logits = torch.empty(len(states), len(banned), device=states.device)
        for rows, tiles in buffers.chunks:
            some = states[rows]
            for number, (tile, out) in enumerate(zip(self._tiles, tiles, strict=True)):
                products = tile(some).float()
                for place, token in enumerate(banned):
                    if token // self._width == number:
                        banned_logits[rows, place] = products[:, token % self._width] * (self._scale * LN2)
                        products[:, token % self._width] = NEG_INF
                if number == 0:
                    if estimate_shift:
                        buffers.shift[rows] = self._shift(products)
                    negative_shift = -buffers.shift[rows]
                    unchanged = self._scale == 1 and not bool(negative_shift.any())
                if not unchanged:
                    torch.add(negative_shift, products, alpha=self._scale, out=products)
                torch.exp2(products, out=out.exponentials)
                torch.sum(out.exponentials, 1, out=out.sums)
                torch.amax(out.blocks, 2, out=out.maxima)
        return buffers.sums.sum(0), banned_logits

    def _shift(self, products: Tensor) -> Tensor:
        """Shifts (R, 1) that put the highest of `products` (R, M) into the range of float32."""
        highest = products.amax(1, keepdim=True) * self._scale
        return (highest - _TARGET).masked_fill_((highest >= _LOW) & (highest <= _HIGH), 0.0)

    def _take_buffers(self, rows: int, device: torch.device) -> ScoreBuffers:
        """Buffers for the scores of `rows` rows, released ones if there are any."""
        memory = None
        # Popping is atomic: released buffers go to one thread only.
        with suppress(IndexError):
            spare = self._spare.pop()
            if len(spare.shift) == rows:
                return spare
            memory = spare.memory
        size = len(self._tiles) * rows * self._width
        # Usable both in and out of inference mode.
        with torch.inference_mode(False):
            if memory is None or len(memory) < size:
                memory = torch.empty(size, device=device)
            return ScoreBuffers.over(memory, rows, self._width, [tile.out_features for tile in self._tiles])


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
