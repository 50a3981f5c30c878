"""Rules on the next token: scores changed by what the caption already contains.

As in `transformers`, greedy search changes logits and beam search log-probabilities. Shapes: R rows
(hypotheses), t tokens generated so far.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from captioning.decoding.scores import Scores
from captioning.decoding.settings import DecodingSettings


class Processors:
    """Everything that the settings forbid or discourage.

    `banned` ids are never emitted. The end token is never among them, even where a vocabulary uses
    one token both to begin and to end (GPT-2).
    """

    def __init__(self, settings: DecodingSettings, eos_id: int, banned: Sequence[int] = ()) -> None:
        self.settings = settings
        self.eos_id = eos_id
        self._banned = sorted({int(token) for token in banned} - {eos_id})

    def banned_at(self, length: int) -> list[int]:
        """The tokens that no row may emit after `length` tokens."""
        return [*self._banned, *([self.eos_id] if length < self.settings.min_new_tokens else [])]

    def __call__(self, scores: Scores, history: Tensor, *, normalised: bool) -> None:
        """Apply the rules that depend on a row's tokens so far, `history` (R, t), to the `scores` of its next one.

        `normalised` says whether the repetition penalty is applied to log-probabilities or to logits.
        """
        settings, length = self.settings, history.shape[1]
        if settings.repetition_penalty != 1.0 and length > 0:
            penalise_repetition(scores, history, settings.repetition_penalty, normalised=normalised)
        if settings.no_repeat_ngram_size:
            forbid_repeated_ngrams(scores, history, settings.no_repeat_ngram_size)


def penalise_repetition(scores: Scores, history: Tensor, penalty: float, *, normalised: bool) -> None:
    """Make tokens that the row already contains less likely.

    A negative score is multiplied by `penalty`, a positive one divided by it: a penalty above 1 lowers
    both, once however often the token occurred (Keskar et al. 2019, CTRL). `history` is (R, t) long.
    """
    repeated = scores.gather(history)
    base = scores.logsumexp[:, None] if normalised else torch.zeros_like(repeated[:, :1])
    repeated = repeated - base
    scores.set(history, torch.where(repeated < 0, repeated * penalty, repeated / penalty) + base)


def forbid_repeated_ngrams(scores: Scores, history: Tensor, size: int) -> None:
    """Forbid every token that would repeat an n-gram of `history` (R, t)."""
    length = history.shape[1]
    if length < size:
        return
    ngrams = history.unfold(1, size, 1)
    context = history[:, length - size + 1 :]
    repeats = (ngrams[:, :, :-1] == context[:, None, :]).all(dim=2)
    scores.forbid(ngrams[:, :, -1], repeats)
