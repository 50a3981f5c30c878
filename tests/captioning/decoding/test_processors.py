"""The effect of each processor on scores and captions."""

import pytest
import torch

from captioning.decoding.processors import Processors, forbid_repeated_ngrams, penalise_repetition
from captioning.decoding.scores import Scores
from captioning.decoding.search import decode
from captioning.decoding.settings import DecodingSettings
from captioning.errors import LogitsError
from tests.captioning.decoding.fakes import TableStepper, identity_head

EOS = 0
NEG_INF = -float("inf")


def scored(logits: list[list[float]]) -> Scores:
    return identity_head(len(logits[0])).score(torch.tensor(logits))


def all_logits(scores: Scores, size: int) -> list[list[float]]:
    rows = len(scores.logsumexp)
    return [[round(value, 4) for value in row] for row in scores.gather(torch.arange(size).expand(rows, -1)).tolist()]


def test_the_repetition_penalty_lowers_positive_and_negative_scores() -> None:
    scores = scored([[2.0, -2.0, 4.0, -4.0]])
    penalise_repetition(scores, torch.tensor([[0, 1, 1, 0]]), 2.0, normalised=False)
    assert all_logits(scores, 4) == [[1.0, -4.0, 4.0, -4.0]]


def test_the_repetition_penalty_lowers_all_log_probabilities() -> None:
    scores = scored([[2.0, -2.0, 4.0, -4.0]])
    penalise_repetition(scores, torch.tensor([[2]]), 3.0, normalised=True)
    before = torch.tensor([2.0, -2.0, 4.0, -4.0]).log_softmax(0)
    [after] = scores.gather(torch.arange(4)[None]) - scores.logsumexp
    torch.testing.assert_close(after, before * torch.tensor([1.0, 1.0, 3.0, 1.0]))
    # The model's own log-probabilities are still known.
    best = scores.topk(4, torch.zeros(1, 1))
    torch.testing.assert_close(best.log_probs[0], before[best.tokens[0]])


def test_ngrams_are_banned_per_row() -> None:
    def banned(rows: int, history: list[list[int]], size: int) -> list[list[float]]:
        scores = scored([[0.0] * 5] * rows)
        forbid_repeated_ngrams(scores, torch.tensor(history), size)
        return all_logits(scores, 5)

    history = [[1, 2, 3, 1, 2], [1, 2, 3, 4, 1], [1, 2, 1, 3, 1]]
    assert banned(3, history, 2) == [[0, 0, 0, NEG_INF, 0], [0, 0, NEG_INF, 0, 0], [0, 0, NEG_INF, NEG_INF, 0]]
    assert banned(3, history, 3) == [[0, 0, 0, NEG_INF, 0], [0] * 5, [0] * 5]
    assert banned(1, [[4, 2]], 1) == [[0, 0, NEG_INF, 0, NEG_INF]]
    assert banned(1, [[4, 2]], 3) == [[0] * 5]


def test_the_end_token_is_banned_only_while_the_caption_is_too_short() -> None:
    processors = Processors(DecodingSettings(min_new_tokens=2), EOS, banned=(EOS, 3, 3))
    assert [processors.banned_at(length) for length in range(4)] == [[3, EOS], [3, EOS], [3], [3]]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_captions_obey_the_settings(beam_size: int) -> None:
    stepper = TableStepper.random(30, 8, seed=11, eos_bonus=1.0)

    def captions(banned: tuple[int, ...] = (), **settings: float) -> list[tuple[int, ...]]:
        chosen = DecodingSettings(beam_size=beam_size, max_new_tokens=12, **settings)  # type: ignore[arg-type]
        return [hypotheses[0].tokens for hypotheses in decode(stepper, chosen, eos_id=EOS, banned=banned)]

    def repeats(size: int, found: list[tuple[int, ...]]) -> int:
        ngrams = [[tokens[i : i + size] for i in range(len(tokens) - size + 1)] for tokens in found]
        return sum(len(each) - len(set(each)) for each in ngrams)

    plain = captions()
    assert repeats(1, plain) > 0
    assert repeats(2, plain) > 0
    assert repeats(2, captions(no_repeat_ngram_size=2)) == 0
    assert repeats(1, captions(no_repeat_ngram_size=1)) == 0
    assert repeats(1, captions(repetition_penalty=1.5)) < repeats(1, plain)
    assert min(map(len, plain)) < 5 <= min(map(len, captions(min_new_tokens=5)))
    assert any(3 in tokens for tokens in plain)
    assert not any(3 in tokens or 5 in tokens for tokens in captions(banned=(3, 5)))


@pytest.mark.parametrize("beam_size", [1, 3])
def test_settings_that_allow_no_token_raise(beam_size: int) -> None:
    stepper = TableStepper.random(3, 4, seed=2)
    settings = DecodingSettings(beam_size=beam_size, max_new_tokens=8, min_new_tokens=6, no_repeat_ngram_size=1)
    with pytest.raises(LogitsError, match="the decoding settings allow") as raised:
        decode(stepper, settings, eos_id=EOS)
    assert raised.value.images == (0, 1, 2)
