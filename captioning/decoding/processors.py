"""What a caption may not say next: scores of the next token, changed by what was said so far.

Greedy search changes logits, beam search log-probabilities, as in `transformers`. A processor knows
tokens only; the search decides what to do with the scores. Shapes: R rows (hypotheses), t tokens
generated so far.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from captioning.decoding.scores import Scores
from captioning.decoding.settings import DecodingSettings


class Processors:
    """All that the settings forbid or discourage.

    `banned` ids are never emitted. The end token is not one of them, even where a vocabulary uses
    one token to begin and to end (GPT-2).
    """

    def __init__(self, settings: DecodingSettings, eos_id: int, banned: Sequence[int] = ()) -> None:
        self.settings = settings
        self.eos_id = eos_id
        self._banned = sorted({int(token) for token in banned} - {eos_id})

    def never(self, length: int) -> list[int]:
        """The tokens that no row may say after `length` tokens."""
        return [*self._banned, *([self.eos_id] if length < self.settings.min_new_tokens else [])]

    def __call__(self, scores: Scores, history: Tensor, *, normalised: bool) -> None:
        """Change `scores` of the next token, given the tokens so far (R, t), in all that depends on the row.

        `normalised` says whether the repetition penalty is one of log-probabilities, or of logits.
        """
        settings, length = self.settings, history.shape[1]
        if settings.repetition_penalty != 1.0 and length > 0:
            penalise_repetition(scores, history, settings.repetition_penalty, normalised=normalised)
        if settings.no_repeat_ngram_size:
            forbid_repeated_ngrams(scores, history, settings.no_repeat_ngram_size)


def penalise_repetition(scores: Scores, history: Tensor, penalty: float, *, normalised: bool) -> None:
    """Make tokens less likely that the row already holds.

    A negative score is multiplied by `penalty`, a positive one divided: above 1 both lower it,
    once however often the token came (Keskar et al. 2019, CTRL). `history` is (R, t) long.
    """
    said = scores.of(history)
    base = scores.normaliser[:, None] if normalised else torch.zeros_like(said[:, :1])
    said = said - base
    scores.set(history, torch.where(said < 0, said * penalty, said / penalty) + base)


def forbid_repeated_ngrams(scores: Scores, history: Tensor, size: int) -> None:
    """Rule out every token that would complete an n-gram of `history` (R, t) again."""
    length = history.shape[1]
    if length < size:
        return
    ngrams = history.unfold(1, size, 1)
    context = history[:, length - size + 1 :]
    repeats = (ngrams[:, :, :-1] == context[:, None, :]).all(dim=2)
    scores.forbid(ngrams[:, :, -1], repeats)
