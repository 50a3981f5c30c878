"""What a caption may not say next: scores of the next token, changed by what was said so far.

Scores are logits (greedy search) or log-probabilities (beam search), as in `transformers`. A
processor knows tokens only; the search decides what to do with the scores. Shapes: R rows
(hypotheses), t tokens generated so far, V vocabulary entries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from captioning.decoding.settings import DecodingSettings

_NEVER = -float("inf")


def penalise_repetition(scores: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Make tokens less likely that the row already holds; a new tensor.

    A negative score is multiplied by `penalty`, a positive one divided: above 1 both lower it,
    once however often the token came (Keskar et al. 2019, CTRL). `scores` is (R, V), `history`
    (R, t) long.
    """
    said = scores.gather(1, history)
    return scores.scatter(1, history, torch.where(said < 0, said * penalty, said / penalty))


def ban_repeated_ngrams_(scores: Tensor, history: Tensor, size: int) -> Tensor:
    """Set to minus infinity, in place, every token that would complete an n-gram of `history` again.

    `scores` is (R, V), `history` (R, t) long.
    """
    length = history.shape[1]
    if length < size:
        return scores
    ngrams = history.unfold(1, size, 1)
    context = history[:, length - size + 1 :]
    repeats = (ngrams[:, :, :-1] == context[:, None, :]).all(dim=2)
    # A token may end several n-grams of which one repeats: the smallest bound holds.
    bounds = torch.zeros_like(repeats, dtype=scores.dtype).fill_(float("inf")).masked_fill_(repeats, _NEVER)
    return scores.scatter_reduce_(1, ngrams[:, :, -1], bounds, "amin")


class Processors:
    """All that the settings forbid or discourage, applied at once.

    `banned` ids are never emitted. The end token is not one of them, even where a vocabulary uses
    one token to begin and to end (GPT-2).
    """

    def __init__(self, settings: DecodingSettings, eos_id: int, banned: Sequence[int] = ()) -> None:
        self.settings = settings
        self.eos_id = eos_id
        self._banned = torch.tensor(sorted({int(token) for token in banned} - {eos_id}), dtype=torch.long)

    def __call__(self, scores: Tensor, history: Tensor) -> Tensor:
        """Scores (R, V) of the next token, given the tokens so far (R, t). `scores` stays as it is."""
        settings, length = self.settings, history.shape[1]
        if settings.repetition_penalty != 1.0 and length > 0:
            changed = penalise_repetition(scores, history, settings.repetition_penalty)
        else:
            changed = scores.clone()
        if settings.no_repeat_ngram_size:
            ban_repeated_ngrams_(changed, history, settings.no_repeat_ngram_size)
        if length < settings.min_new_tokens:
            changed[:, self.eos_id] = _NEVER
        if len(self._banned):
            self._banned = self._banned.to(scores.device)
            changed.index_fill_(1, self._banned, _NEVER)
        return changed
