"""Greedy and beam search over any model that offers a `Stepper`, batched over images × beams.

For the same settings the tokens are those of `transformers`' `generate` (5.x, sampling off,
`early_stopping=False`). Unlike it, an image that is finished leaves the batch at once, and the
first step runs one row an image. The engine knows tokens and scores: no text, no images, no
model. Shapes: N images still open, K beams, T tokens at most, V vocabulary entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.decoding.processors import Processors
from captioning.decoding.scores import Best
from captioning.decoding.settings import DecodingSettings
from captioning.decoding.stepper import Stepper
from captioning.errors import LogitsError

# Lower than any sum of log-probabilities, yet finite; the value `transformers` uses, so that the
# same hypotheses win where fewer than K are possible.
_NEVER = -1.0e9


@dataclass(frozen=True)
class Hypothesis:
    """One caption as tokens."""

    tokens: tuple[int, ...]
    """Without the end token."""
    score: float
    """Mean log-probability a token by the model itself, before processors, the end token counted."""
    num_tokens: int
    """Tokens generated, the end token counted where the caption has one."""
    rank_score: float
    """What hypotheses are ordered by: processed log-probabilities, summed, over length ** length_penalty."""


def decode(
    stepper: Stepper, settings: DecodingSettings, *, eos_id: int, banned: Sequence[int] = ()
) -> list[list[Hypothesis]]:
    """Captions for the images of `stepper`, as tokens: per image up to `num_captions`, best first.

    `banned` ids are never emitted. An image's captions do not depend on the others of its batch
    (beyond what batched products change in the last digit of its logits). Raises `LogitsError`
    where the model's logits are not numbers, or the settings leave no word to say.
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
        scores = stepper.vocabulary.score(states, processors.never(step))
        # As in transformers, greedy search penalises logits, beam search log-probabilities.
        processors(scores, tokens[images, :step], normalised=False)
        best = scores.best(1, torch.zeros_like(scores.normaliser)[:, None])
        sums[images] += best.own[:, 0]
        chosen = best.words[:, 0]
        tokens[images, step] = chosen
        lengths[images] = step + 1
        broken = scores.broken | best.ranks[:, 0].isneginf()
        stepper.vocabulary.release(scores)
        rows = _open_rows(chosen != processors.eos_id, broken, images)
        if step + 1 == settings.max_new_tokens or len(rows) == 0:
            break
        images = images[rows]
        states = stepper.advance(chosen[rows, None], rows[:, None])
    return [
        [_hypothesis(row, total, length, total / length**settings.length_penalty, processors.eos_id)]
        for row, total, length in zip(tokens.tolist(), sums.tolist(), lengths.tolist(), strict=True)
    ]


class _Pool(NamedTuple):
    """Hypotheses of N images, M each."""

    tokens: Tensor  # (N, M, T) long
    numbers: Tensor  # (N, M, 4): ranks, sums, lengths, and whether they are finished; one piece, for they go together

    @classmethod
    def of(cls, tokens: Tensor, ranks: Tensor, sums: Tensor, length: int, finished: Tensor) -> "_Pool":
        return cls(tokens, torch.stack((ranks, sums, torch.full_like(ranks, length), finished.to(ranks.dtype)), dim=2))

    @classmethod
    def empty(cls, count: int, beams: int, length: int, eos_id: int, device: torch.device) -> "_Pool":
        tokens = torch.full((count, beams, length), eos_id, device=device)
        none = torch.zeros(count, beams, device=device)
        return cls.of(tokens, none + _NEVER, none, 0, none)

    @property
    def ranks(self) -> Tensor:
        """(N, M) sum of processed log-probabilities; of finished ones, over the length's power."""
        return self.numbers[:, :, 0]

    @property
    def sums(self) -> Tensor:
        """(N, M) sum of the model's own log-probabilities."""
        return self.numbers[:, :, 1]

    @property
    def finished(self) -> Tensor:
        """(N, M) bool."""
        return self.numbers[:, :, 3] > 0

    def take(self, places: Tensor) -> "_Pool":
        """The hypotheses at `places` (N, M') of each image."""
        return _Pool(*(part.gather(1, places[:, :, None].expand(-1, -1, part.shape[2])) for part in self))

    def of_images(self, rows: Tensor) -> "_Pool":
        """The hypotheses of the images at `rows` alone."""
        return _Pool(*(part[rows] for part in self))


def _beam_search(stepper: Stepper, settings: DecodingSettings, processors: Processors) -> list[list[Hypothesis]]:
    beams, steps, eos_id = settings.beam_size, settings.max_new_tokens, processors.eos_id
    states = stepper.start()
    count, device = len(states), states.device
    if count == 0:
        return []
    images = torch.arange(count, device=device)
    best = _Pool.empty(count, beams, steps, eos_id, device)
    running = _Pool.empty(count, beams, steps, eos_id, device)
    # All beams are the same before the first token: only the first may be continued.
    running.ranks[:, 0] = 0
    for step in range(steps):
        open_images = len(images)
        rows_each = len(states) // open_images  # 1 at the first step, then one a beam
        scores = stepper.vocabulary.score(states, processors.never(step))
        processors(scores, running.tokens[:, :rows_each, :step].flatten(0, 1), normalised=True)
        # Of 2K continuations at most K end (there is one end token), so K remain to go on with.
        ranks, parents, words, own = _filled(scores.best(2 * beams, running.ranks[:, :rows_each]), 2 * beams)
        stepper.vocabulary.release(scores)
        before = running.take(parents)
        tokens, sums = before.tokens, before.sums + own
        tokens[:, :, step] = words
        ends = (words == eos_id) | (step + 1 == steps)

        ranks_to_go_on = ranks + ends * _NEVER
        ahead = ranks_to_go_on.topk(beams, dim=1).indices
        running = _Pool.of(tokens, ranks_to_go_on, sums, step + 1, torch.zeros_like(ends)).take(ahead)

        # Only an end among the K best counts; the other K candidates are there to be continued.
        arrives = ends & (torch.arange(2 * beams, device=device) < beams)
        scale = (step + 1) ** settings.length_penalty
        arrivals = _Pool.of(tokens, ranks / scale + ~arrives * _NEVER, sums, step + 1, arrives)
        offered = _Pool(*(torch.cat(pair, dim=1) for pair in zip(best.of_images(images), arrivals, strict=True)))
        kept = offered.take(offered.ranks.topk(beams, dim=1).indices)
        for whole, part in zip(best, kept, strict=True):
            whole[images] = part

        # An image is finished once its best open hypothesis, were it to end here, would not
        # replace the worst of K finished ones (early_stopping=False in transformers).
        hope = running.ranks[:, :1] / scale
        worst = torch.where(kept.finished, kept.ranks.min(dim=1, keepdim=True).values, _NEVER)
        # Nothing can be said next, and nothing was said to its end.
        stuck = ranks[:, 0].isneginf() & ~kept.finished.any(dim=1)
        broken = scores.broken.view(open_images, rows_each).any(dim=1) | stuck
        rows = _open_rows((hope > worst).any(dim=1), broken, images)
        if step + 1 == steps or len(rows) == 0:
            break
        first_rows = torch.arange(open_images, device=device)[:, None] * rows_each
        next_rows = first_rows + parents.gather(1, ahead)
        if len(rows) < open_images:
            images, next_rows, running = images[rows], next_rows[rows], running.of_images(rows)
        states = stepper.advance(running.tokens[:, :, step], next_rows)
    return _best_hypotheses(best, settings, eos_id)


def _filled(best: Best, count: int) -> Best:
    """`count` of each line: where there are fewer, in a tiny vocabulary, with copies that rank behind all others."""
    there = best.ranks.shape[1]
    if there == count:
        return best
    places = torch.arange(count, device=best.ranks.device)
    copies = Best(*(part[:, places % there] for part in best))
    return copies._replace(ranks=copies.ranks + (places >= there) * _NEVER)


def _open_rows(is_open: Tensor, broken: Tensor, images: Tensor) -> Tensor:
    """The places of open images; refuses broken ones. Both flags (N,) come in one device transfer."""
    flags = torch.stack((is_open, broken)).cpu()
    if flags[1].any():
        raise LogitsError.of(images.cpu()[flags[1]].tolist())
    return flags[0].nonzero().squeeze(1).to(images.device)


def _best_hypotheses(best: _Pool, settings: DecodingSettings, eos_id: int) -> list[list[Hypothesis]]:
    results = []
    for all_tokens, all_numbers in zip(best.tokens.tolist(), best.numbers.tolist(), strict=True):
        possible = [
            _hypothesis(tokens, total, int(length), rank, eos_id)
            for tokens, (rank, total, length, finished) in zip(all_tokens, all_numbers, strict=True)
            if finished
        ]
        # Where fewer than K captions are possible at all, the rest are copies with a rank of _NEVER.
        real = [each for each in possible if each.rank_score * each.num_tokens**settings.length_penalty > _NEVER / 2]
        results.append((real or possible[:1])[: settings.num_captions])
    return results


def _hypothesis(tokens: list[int], total: float, length: int, rank: float, eos_id: int) -> Hypothesis:
    generated = tokens[:length]
    text = generated[:-1] if generated[-1] == eos_id else generated
    return Hypothesis(tokens=tuple(text), score=total / length, num_tokens=length, rank_score=rank)
