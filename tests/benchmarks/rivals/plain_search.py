"""Batched greedy and beam search for the CNN-LSTM, as one writes them in plain PyTorch.

All beams are one batch, scores are the log-softmax of the whole vocabulary, states are re-ordered by
`index_select`, and the batch is done when its last image is. The rules are those of transformers'
`generate`, as in `captioning.decoding`. Shapes: B images, K beams, T tokens so far, V words.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from captioning.decoding.settings import DecodingSettings

_NEVER = -1.0e9


class LstmDecoder:
    """A CNN-LSTM's decoder: states of B × K hypotheses, K those of an image."""

    def __init__(self, model: Any, features: Any, prompt: Sequence[int]) -> None:
        self.model, self.features = model, features
        self.images = len(features.pooled)
        self.beams = 1
        self._hidden, self._cell = model._initial_state(features.pooled)
        self._pooled = features.pooled
        self._first = [model.bos_id, *prompt]

    def start(self, beams: int) -> Tensor:
        """Logits (B · K, V) of the first token, the same for all beams of an image."""
        for token in self._first:
            states = self._recur(torch.full((self.images,), token))
        logits = self._speak(states)
        self.beams = beams
        self._hidden, self._cell, self._pooled = (
            part.repeat_interleave(beams, dim=0) for part in (self._hidden, self._cell, self._pooled)
        )
        return logits.repeat_interleave(beams, dim=0)

    def advance(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits (B · K, V) after `tokens` (B · K,) were said by the hypotheses that follow `parents` (B · K,)."""
        self._hidden, self._cell = self._hidden.index_select(0, parents), self._cell.index_select(0, parents)
        return self._speak(self._recur(tokens))

    def _recur(self, tokens: Tensor) -> Tensor:
        lstm, read = self.model.lstm, torch.cat([self.model.embed(tokens), self._pooled], dim=1)
        # As nn.LSTMCell does it: quicker for one step than nn.LSTM.
        weights = lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0
        self._hidden, self._cell = torch.lstm_cell(read, (self._hidden, self._cell), *weights)
        return self._hidden

    def _speak(self, states: Tensor) -> Tensor:
        model, attended = self.model, None
        if model.attend is not None:
            # The beams of an image share one copy of its grid.
            queries = model.attend.project_queries(states).view(self.images, self.beams, model.attend.heads, -1)
            found = functional.scaled_dot_product_attention(
                queries.transpose(1, 2), self.features.keys, self.features.values
            )
            attended = model.attend.output(states, found.transpose(1, 2).reshape(states.shape))
        return model._logits(model._output(states, attended))


def search(decoder: LstmDecoder, settings: DecodingSettings, end: int, banned: Sequence[int]) -> list[list[int]]:
    """The tokens of each image's best caption, the end token left out."""
    find = _greedy if settings.beam_size == 1 else _beam_search
    rows = find(decoder, settings, end, list(banned))
    return [row[: row.index(end)] if end in row else row for row in rows]


def _greedy(decoder: LstmDecoder, settings: DecodingSettings, end: int, banned: list[int]) -> list[list[int]]:
    logits, steps = decoder.start(1), settings.max_new_tokens
    said = torch.full((decoder.images, steps), end)
    ended = torch.zeros(decoder.images, dtype=torch.bool)
    for step in range(steps):
        tokens = _restrict(logits, said[:, :step], settings, end, banned).argmax(1)
        tokens[ended] = end
        said[:, step] = tokens
        ended |= tokens == end
        if step + 1 == steps or ended.all():
            break
        logits = decoder.advance(tokens, torch.arange(len(tokens)))
    return said.tolist()


def _beam_search(decoder: LstmDecoder, settings: DecodingSettings, end: int, banned: list[int]) -> list[list[int]]:
    beams, steps, images = settings.beam_size, settings.max_new_tokens, decoder.images
    logits = decoder.start(beams)
    said = torch.full((images, beams, steps), end)
    totals = torch.full((images, beams), _NEVER)
    # All beams are the same before the first token: only the first may be continued.
    totals[:, 0] = 0
    done, done_ranks = said.clone(), torch.full((images, beams), _NEVER)
    first_rows = torch.arange(images)[:, None] * beams
    is_open = torch.ones(images, dtype=torch.bool)
    for step in range(steps):
        scores = logits.log_softmax(1)
        scores = _restrict(scores, said.flatten(0, 1)[:, :step], settings, end, banned).view(images, beams, -1)
        words = scores.shape[2]
        ranks, places = (totals[:, :, None] + scores).flatten(1).topk(2 * beams, dim=1)
        parents, tokens = places // words, places % words
        candidates = said.gather(1, parents[:, :, None].expand(-1, -1, steps))
        candidates[:, :, step] = tokens
        ends = (tokens == end) | (step + 1 == steps)

        # Only an end among the K best counts.
        scale = (step + 1) ** settings.length_penalty
        counts = ends & (torch.arange(2 * beams) < beams) & is_open[:, None]
        arrived = torch.where(counts, ranks / scale, _NEVER)
        done_ranks, kept = torch.cat([done_ranks, arrived], dim=1).topk(beams, dim=1)
        done = torch.cat([done, candidates], dim=1).gather(1, kept[:, :, None].expand(-1, -1, steps))

        totals, ahead = ranks.masked_fill(ends, _NEVER).topk(beams, dim=1)
        said = candidates.gather(1, ahead[:, :, None].expand(-1, -1, steps))
        is_open &= totals[:, 0] / scale > done_ranks[:, -1]
        if step + 1 == steps or not is_open.any():
            break
        rows = first_rows + parents.gather(1, ahead)
        logits = decoder.advance(said[:, :, step].flatten(), rows.flatten())
    return done[:, 0].tolist()


def _restrict(scores: Tensor, said: Tensor, settings: DecodingSettings, end: int, banned: list[int]) -> Tensor:
    """Scores (R, V) of the next word, given those said (R, T), with what the settings discourage and forbid."""
    length = said.shape[1]
    if settings.repetition_penalty != 1 and length:
        again = scores.gather(1, said)
        penalty = settings.repetition_penalty
        scores = scores.scatter(1, said, torch.where(again < 0, again * penalty, again / penalty))
    size = settings.no_repeat_ngram_size
    if size and length >= size:
        ngrams = said.unfold(1, size, 1)
        rows, places = (ngrams[:, :, :-1] == said[:, None, length - size + 1 :]).all(2).nonzero(as_tuple=True)
        scores[rows, ngrams[rows, places, -1]] = -torch.inf
    scores[:, [*banned, *([end] if length < settings.min_new_tokens else [])]] = -torch.inf
    return scores
