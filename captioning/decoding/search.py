"""Greedy and beam search over any model that offers a `Stepper`, batched over images × beams.

For the same settings the tokens are those of `transformers`' `generate` (5.x, sampling off,
`early_stopping=False`). Unlike there, a finished image leaves the batch at once, and the first step
runs one row an image. Shapes: N open images, K beams, M hypotheses an image, T tokens at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.decoding.processors import Processors
from captioning.decoding.scores import Candidates
from captioning.decoding.settings import DecodingSettings
from captioning.decoding.stepper import Stepper
from captioning.errors import LogitsError

# Lower than any sum of log-probabilities, yet finite. `transformers` uses the same value, so the
# same hypotheses win where fewer than K are possible.
_LOWEST_SCORE = -1.0e9


@dataclass(frozen=True)
class Hypothesis:
    """One caption as tokens."""

    tokens: tuple[int, ...]
    """Without the end token."""
    score: float
    """Mean log-probability of a token, by the model itself before processors; the end token counts."""
    num_tokens: int
    """Tokens generated; the end token counts where the caption has one."""
    rank_score: float
    """What hypotheses are ordered by: the sum of processed log-probabilities over length ** length_penalty."""


def decode(
    stepper: Stepper, settings: DecodingSettings, *, eos_id: int, banned: Sequence[int] = ()
) -> list[list[Hypothesis]]:
    """Caption the images of `stepper`, as tokens: up to `num_captions` hypotheses an image, best first.

    `banned` ids are never emitted. An image's captions do not depend on the rest of its batch
    (beyond what batched products change in the last digit of its logits). Raises `LogitsError`
    where the model's logits are not finite, or the settings allow no token.
    """
    processors = Processors(settings, eos_id, banned)
    with torch.no_grad():
        if settings.beam_size == 1:
            return _greedy(stepper, settings, processors)
        return _beam_search(stepper, settings, processors)


def _greedy(stepper: Stepper, settings: DecodingSettings, processors: Processors) -> list[list[Hypothesis]]:
    states = stepper.start()
    count, device = len(states), states.device
    if count == 0:
        return []
    images = torch.arange(count, device=device)
    tokens = torch.full((count, settings.max_new_tokens), processors.eos_id, device=device)
    sums = torch.zeros(count, device=device)
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    for step in range(settings.max_new_tokens):
        scores = stepper.lm_head.score(states, processors.banned_at(step))
        # As in transformers, greedy search penalises logits, beam search log-probabilities.
        processors(scores, tokens[images, :step], normalised=False)
        best = scores.topk(1, torch.zeros_like(scores.logsumexp)[:, None])
        sums[images] += best.log_probs[:, 0]
        chosen = best.tokens[:, 0]
        tokens[images, step] = chosen
        lengths[images] = step + 1
        broken = scores.broken | best.rank_scores[:, 0].isneginf()
        stepper.lm_head.release(scores)
        rows = _open_rows(chosen != processors.eos_id, broken, images)
        if step + 1 == settings.max_new_tokens or len(rows) == 0:
            break
        images = images[rows]
        states = stepper.advance(chosen[rows, None], rows[:, None])
    return [
        [_hypothesis(row, total, length, total / length**settings.length_penalty, processors.eos_id)]
        for row, total, length in zip(tokens.tolist(), sums.tolist(), lengths.tolist(), strict=True)
    ]


class _Hypotheses(NamedTuple):
    """M hypotheses for each of N images."""

    tokens: Tensor  # (N, M, T) long
    numbers: Tensor  # (N, M, 4): rank scores, sums, lengths and finished flags, in one tensor to be gathered at once

    @classmethod
    def of(cls, tokens: Tensor, rank_scores: Tensor, sums: Tensor, length: int, finished: Tensor) -> "_Hypotheses":
        lengths, flags = torch.full_like(rank_scores, length), finished.to(rank_scores.dtype)
        return cls(tokens, torch.stack((rank_scores, sums, lengths, flags), dim=2))

    @classmethod
    def empty(cls, count: int, beams: int, length: int, eos_id: int, device: torch.device) -> "_Hypotheses":
        tokens = torch.full((count, beams, length), eos_id, device=device)
        zeros = torch.zeros(count, beams, device=device)
        return cls.of(tokens, zeros + _LOWEST_SCORE, zeros, 0, zeros)

    @property
    def rank_scores(self) -> Tensor:
        """(N, M) sum of processed log-probabilities; of finished ones, over length ** length_penalty."""
        return self.numbers[:, :, 0]

    @property
    def sums(self) -> Tensor:
        """(N, M) sum of the model's own log-probabilities."""
        return self.numbers[:, :, 1]

    @property
    def finished(self) -> Tensor:
        """(N, M) bool."""
        return self.numbers[:, :, 3] > 0

    def select(self, places: Tensor) -> "_Hypotheses":
        """The hypotheses at `places` (N, M') of each image."""
        return _Hypotheses(*(part.gather(1, places[:, :, None].expand(-1, -1, part.shape[2])) for part in self))

    def of_images(self, rows: Tensor) -> "_Hypotheses":
        """The hypotheses of the images at `rows`."""
        return _Hypotheses(*(part[rows] for part in self))


def _beam_search(stepper: Stepper, settings: DecodingSettings, processors: Processors) -> list[list[Hypothesis]]:
    beams, steps, eos_id = settings.beam_size, settings.max_new_tokens, processors.eos_id
    states = stepper.start()
    count, device = len(states), states.device
    if count == 0:
        return []
    images = torch.arange(count, device=device)
    best = _Hypotheses.empty(count, beams, steps, eos_id, device)
    running = _Hypotheses.empty(count, beams, steps, eos_id, device)
    # All beams are the same before the first token: only the first may be continued.
    running.rank_scores[:, 0] = 0
    for step in range(steps):
        open_images = len(images)
        rows_each = len(states) // open_images  # 1 at the first step, then one a beam
        scores = stepper.lm_head.score(states, processors.banned_at(step))
        processors(scores, running.tokens[:, :rows_each, :step].flatten(0, 1), normalised=True)
        # At most K of 2K candidates end (there is one end token), so at least K are left to continue.
        candidates = _pad(scores.topk(2 * beams, running.rank_scores[:, :rows_each]), 2 * beams)
        rank_scores, parents, next_tokens, log_probs = candidates
        stepper.lm_head.release(scores)
        before = running.select(parents)
        tokens, sums = before.tokens, before.sums + log_probs
        tokens[:, :, step] = next_tokens
        ends = (next_tokens == eos_id) | (step + 1 == steps)

        running_scores = rank_scores + ends * _LOWEST_SCORE
        continued = running_scores.topk(beams, dim=1).indices
        running = _Hypotheses.of(tokens, running_scores, sums, step + 1, torch.zeros_like(ends)).select(continued)

        # An end counts only among the K best; the other K candidates are there to be continued.
        finishes = ends & (torch.arange(2 * beams, device=device) < beams)
        scale = (step + 1) ** settings.length_penalty
        finished_scores = rank_scores / scale + ~finishes * _LOWEST_SCORE
        finished = _Hypotheses.of(tokens, finished_scores, sums, step + 1, finishes)
        merged = _Hypotheses(*(torch.cat(pair, dim=1) for pair in zip(best.of_images(images), finished, strict=True)))
        kept = merged.select(merged.rank_scores.topk(beams, dim=1).indices)
        for whole, part in zip(best, kept, strict=True):
            whole[images] = part

        # An image is finished once its best running hypothesis, if it ended here, would not
        # replace the worst of K finished ones (early_stopping=False in transformers).
        attainable = running.rank_scores[:, :1] / scale
        worst = torch.where(kept.finished, kept.rank_scores.min(dim=1, keepdim=True).values, _LOWEST_SCORE)
        # No token is allowed, and no hypothesis has finished.
        stuck = rank_scores[:, 0].isneginf() & ~kept.finished.any(dim=1)
        broken = scores.broken.view(open_images, rows_each).any(dim=1) | stuck
        rows = _open_rows((attainable > worst).any(dim=1), broken, images)
        if step + 1 == steps or len(rows) == 0:
            break
        first_rows = torch.arange(open_images, device=device)[:, None] * rows_each
        next_rows = first_rows + parents.gather(1, continued)
        if len(rows) < open_images:
            images, next_rows, running = images[rows], next_rows[rows], running.of_images(rows)
        states = stepper.advance(running.tokens[:, :, step], next_rows)
    return _best_hypotheses(best, settings, eos_id)


def _pad(candidates: Candidates, count: int) -> Candidates:
    """`count` candidates of each group: a tiny vocabulary has fewer, and copies follow that rank behind all others."""
    available = candidates.rank_scores.shape[1]
    if available == count:
        return candidates
    places = torch.arange(count, device=candidates.rank_scores.device)
    copies = Candidates(*(part[:, places % available] for part in candidates))
    return copies._replace(rank_scores=copies.rank_scores + (places >= available) * _LOWEST_SCORE)


def _open_rows(is_open: Tensor, broken: Tensor, images: Tensor) -> Tensor:
    """The rows of open images; raises for broken ones. Both flags (N,) are copied from the device at once."""
    flags = torch.stack((is_open, broken)).cpu()
    if flags[1].any():
        raise LogitsError.of(images.cpu()[flags[1]].tolist())
    return flags[0].nonzero().squeeze(1).to(images.device)


def _best_hypotheses(best: _Hypotheses, settings: DecodingSettings, eos_id: int) -> list[list[Hypothesis]]:
    results = []
    for image_tokens, image_numbers in zip(best.tokens.tolist(), best.numbers.tolist(), strict=True):
        finished = [
            _hypothesis(tokens, total, int(length), rank_score, eos_id)
            for tokens, (rank_score, total, length, is_finished) in zip(image_tokens, image_numbers, strict=True)
            if is_finished
        ]
        # Where fewer than K captions are possible at all, the rest are copies with a score of _LOWEST_SCORE.
        power = settings.length_penalty
        distinct = [each for each in finished if each.rank_score * each.num_tokens**power > _LOWEST_SCORE / 2]
        results.append((distinct or finished[:1])[: settings.num_captions])
    return results


def _hypothesis(tokens: list[int], total: float, length: int, rank_score: float, eos_id: int) -> Hypothesis:
    generated = tokens[:length]
    text = generated[:-1] if generated[-1] == eos_id else generated
    return Hypothesis(tokens=tuple(text), score=total / length, num_tokens=length, rank_score=rank_score)
