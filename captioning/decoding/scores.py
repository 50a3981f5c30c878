"""Next-token scores of every row over the whole vocabulary, and the best candidates among them.

A logit l is stored as the exponential 2 ** (l / ln 2 - shift), with one shift for each row: sums, maxima and
order need nothing else, and a logit that is asked for is computed back by a logarithm. The top candidates are
searched only in the blocks with the highest maxima, where they must be. Shapes: R rows, V vocabulary, P tiles
of the vocabulary with W tokens each, N groups of K hypotheses (R = N · K).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Tokens in a block and blocks in a superblock. Maxima of blocks are stored; those of superblocks are searched first.
BLOCK, SUPERBLOCK = 64, 8
#: Rows processed at once on a CPU.
_ROWS_PER_CHUNK = 192

#: Exponentials to base two take a third of the time of others.
LOG2E, LN2 = math.log2(math.e), math.log(2.0)
#: The highest power of two that a float32 holds.
_MAX_EXPONENT = 127.0

#: The logit of a forbidden token.
NEG_INF = -float("inf")


class TileBuffers(NamedTuple):
    """Views for one tile of W tokens in some of the rows."""

    exponentials: Tensor  # (R, W)
    blocks: Tensor  # (R, blocks, BLOCK), the same memory
    sums: Tensor  # (R,)
    maxima: Tensor  # (R, blocks)


class ScoreBuffers(NamedTuple):
    """The memory behind the scores of R rows."""

    memory: Tensor  # (at least P · R · W,), whose beginning is the exponentials
    exponentials: Tensor  # (P, R, W) to base two, less the shift
    shift: Tensor  # (R, 1)
    sums: Tensor  # (P, R) of the exponentials
    maxima: Tensor  # (R, P · W / BLOCK) of the exponentials
    chunks: list[tuple[slice, list[TileBuffers]]]  # views: rows processed at once, and their tiles

    @classmethod
    def over(cls, memory: Tensor, rows: int, width: int, sizes: Sequence[int]) -> "ScoreBuffers":
        """Buffers in `memory` for `rows` and tiles of `sizes` tokens, which start `width` apart."""
        exponentials = memory[: len(sizes) * rows * width].view(len(sizes), rows, width)
        # The last tile may be shorter: the rest of it counts as forbidden.
        exponentials[-1, :, sizes[-1] :] = 0.0
        sums = memory.new_empty(len(sizes), rows)
        maxima = memory.new_zeros(rows, len(sizes), width // BLOCK)
        chunk = _ROWS_PER_CHUNK if memory.device.type == "cpu" else rows
        chunks = []
        for first in range(0, rows, chunk):
            some = slice(first, first + chunk)
            tiles = []
            for number, size in enumerate(sizes):
                part = exponentials[number, some, :size]
                block_maxima = maxima[some, number, : size // BLOCK]
                tiles.append(TileBuffers(part, part.view(len(part), -1, BLOCK), sums[number, some], block_maxima))
            chunks.append((some, tiles))
        return cls(memory, exponentials, memory.new_empty(rows, 1), sums, maxima.flatten(1), chunks)


class Candidates(NamedTuple):
    """The C best continuations of each of N groups of hypotheses, best first."""

    rank_scores: Tensor  # (N, C) what they were selected by
    parents: Tensor  # (N, C) long, the continued hypothesis's place in its group
    tokens: Tensor  # (N, C) long
    log_probs: Tensor  # (N, C) the model's own log-probability of the token, before any change


class Scores:
    """The logits (R, V) of the next token, which a search may change and selects the best of.

    `logsumexp` (R,) is their normaliser, before any token was forbidden or changed.
    """

    def __init__(self, buffers: ScoreBuffers, logsumexp: Tensor, vocab_size: int) -> None:
        self.logsumexp = logsumexp
        self.buffers = buffers
        self._vocab_size = vocab_size
        self._changes: list[tuple[Tensor, Tensor]] = []
        self._rows = torch.arange(len(logsumexp), device=logsumexp.device)[:, None]

    @property
    def broken(self) -> Tensor:
        """(R,) bool: whether a row has logits that are not finite."""
        return ~self.logsumexp.isfinite()

    def gather(self, tokens: Tensor) -> Tensor:
        """The present logits (R, M) of `tokens` (R, M)."""
        return (self.buffers.memory[self._positions(tokens)].log2_() + self.buffers.shift).mul_(LN2)

    def set(self, tokens: Tensor, logits: Tensor) -> None:
        """Set the logits (R, M) of `tokens` (R, M). A token given twice in a row must get the same value twice."""
        self._changes.append((tokens, self.gather(tokens)))
        powers = (logits * LOG2E - self.buffers.shift).clamp_(max=_MAX_EXPONENT)
        # In float64: the float32 kernel rounds the last elements, which fill no vector, differently from the rest.
        self.buffers.memory[self._positions(tokens)] = powers.double().exp2_().float()
        self._update_maxima(tokens)

    def forbid(self, tokens: Tensor, where: Tensor) -> None:
        """Forbid those of `tokens` (R, M) `where` (R, M) is true."""
        self._changes.append((tokens, self.gather(tokens)))
        # A token may occur twice and be forbidden once: the smaller bound holds.
        bounds = torch.full_like(where, -NEG_INF, dtype=self.buffers.memory.dtype).masked_fill_(where, 0.0)
        self.buffers.memory.scatter_reduce_(0, self._positions(tokens).flatten(), bounds.flatten(), "amin")
        self._update_maxima(tokens)

    def topk(self, count: int, beam_scores: Tensor) -> Candidates:
        """The `count` best continuations of each group, or all there are.

        `beam_scores` (N, K) are the hypotheses' scores so far, to which the token's log-probability is added.
        """
        groups, beams = beam_scores.shape
        offsets = (self.buffers.shift[:, 0] * LN2 - self.logsumexp) + beam_scores.flatten()
        # The best are in the blocks with the highest maxima, which are in the superblocks with the highest.
        maxima = self.buffers.maxima.view(len(self._rows), -1, SUPERBLOCK)
        first_rows = self._rows[::beams]
        highest = _rank_scores(maxima.amax(2), offsets[:, None]).view(groups, -1)
        places = highest.topk(min(count, highest.shape[1]), dim=1, sorted=False).indices
        rows, superblocks = first_rows + places // maxima.shape[1], places % maxima.shape[1]
        highest = _rank_scores(maxima[rows, superblocks], offsets[rows][:, :, None]).flatten(1)
        places = highest.topk(min(count, highest.shape[1]), dim=1, sorted=False).indices
        rows = rows.gather(1, places // SUPERBLOCK)
        blocks = superblocks.gather(1, places // SUPERBLOCK) * SUPERBLOCK + places % SUPERBLOCK
        found = self._gather_blocks(rows, blocks)
        rank_scores = _rank_scores(found, offsets[rows][:, :, None]).flatten(1)
        rank_scores, places = rank_scores.topk(min(count, beams * self._vocab_size), dim=1)
        rows = rows.gather(1, places // BLOCK)
        # Padding of the last block is selected only where all that is left is forbidden.
        tokens = (blocks.gather(1, places // BLOCK) * BLOCK + places % BLOCK).clamp_(max=self._vocab_size - 1)
        logits = (found.flatten(1).gather(1, places).log2_() + self.buffers.shift[:, 0][rows]).mul_(LN2)
        log_probs = self._original_logits(rows, tokens, logits) - self.logsumexp[rows]
        return Candidates(rank_scores, rows - first_rows, tokens, log_probs)

    def _original_logits(self, rows: Tensor, tokens: Tensor, logits: Tensor) -> Tensor:
        """The model's own logits of `tokens` in `rows`, whose present ones are `logits`; all (N, C)."""
        for changed, values in reversed(self._changes):
            same = tokens[:, :, None] == changed[rows]
            place = same.to(torch.uint8).argmax(2)
            logits = torch.where(same.any(2), values[rows, place], logits)
        return logits

    def _positions(self, tokens: Tensor) -> Tensor:
        """Positions of `tokens` (R, M) in the memory."""
        _, rows, width = self.buffers.exponentials.shape
        return (tokens // width * rows + self._rows) * width + tokens % width

    def _gather_blocks(self, rows: Tensor, blocks: Tensor) -> Tensor:
        """Exponentials (N, M, BLOCK) of `blocks` (N, M) of `rows`, (N, M) or (N, 1)."""
        _, count, width = self.buffers.exponentials.shape
        per_tile = width // BLOCK
        positions = (blocks // per_tile * count + rows) * per_tile + blocks % per_tile
        # Whole blocks are copied, not single numbers.
        return self.buffers.memory.view(-1, BLOCK).index_select(0, positions.flatten()).view(*blocks.shape, BLOCK)

    def _update_maxima(self, tokens: Tensor) -> None:
        """Recompute the maxima of the blocks that contain `tokens`."""
        blocks = tokens // BLOCK
        self.buffers.maxima.scatter_(1, blocks, self._gather_blocks(self._rows, blocks).amax(2))


def _rank_scores(exponentials: Tensor, offsets: Tensor) -> Tensor:
    """Rank scores of the hypotheses continued by these tokens."""
    return exponentials.log2().mul_(LN2).add_(offsets)
