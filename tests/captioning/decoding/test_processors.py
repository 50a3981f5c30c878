"""What each processor does to scores, and to captions."""

import pytest
import torch

from captioning.decoding.processors import Processors, ban_repeated_ngrams_, penalise_repetition
from captioning.decoding.search import decode
from captioning.decoding.settings import DecodingSettings
from tests.captioning.decoding.fakes import TableStepper

EOS = 0
NEVER = -float("inf")


def test_the_repetition_penalty_lowers_positive_and_negative_scores() -> None:
    scores = torch.tensor([[2.0, -2.0, 4.0, -4.0]])
    penalised = penalise_repetition(scores, torch.tensor([[0, 1, 1, 0]]), 2.0)
    assert penalised.tolist() == [[1.0, -4.0, 4.0, -4.0]]
    assert scores.tolist() == [[2.0, -2.0, 4.0, -4.0]]


def test_ngrams_are_banned_per_row() -> None:
    history = torch.tensor([[1, 2, 3, 1, 2], [1, 2, 3, 4, 1], [1, 2, 1, 3, 1]])
    scores = ban_repeated_ngrams_(torch.zeros(3, 5), history, 2)
    assert scores.tolist() == [[0, 0, 0, NEVER, 0], [0, 0, NEVER, 0, 0], [0, 0, NEVER, NEVER, 0]]
    scores = ban_repeated_ngrams_(torch.zeros(3, 5), history, 3)
    assert scores.tolist() == [[0, 0, 0, NEVER, 0], [0] * 5, [0] * 5]
    scores = ban_repeated_ngrams_(torch.zeros(1, 5), torch.tensor([[4, 2]]), 1)
    assert scores.tolist() == [[0, 0, NEVER, 0, NEVER]]
    assert ban_repeated_ngrams_(torch.zeros(1, 5), torch.tensor([[4, 2]]), 3).tolist() == [[0] * 5]


def test_the_end_token_is_never_banned() -> None:
    processors = Processors(DecodingSettings(), EOS, banned=(EOS, 3, 3))
    scores = torch.zeros(2, 5)
    assert processors(scores, torch.zeros(2, 0, dtype=torch.long)).tolist() == [[0, 0, 0, NEVER, 0]] * 2
    assert scores.tolist() == [[0] * 5] * 2


@pytest.mark.parametrize("beam_size", [1, 3])
def test_captions_obey(beam_size: int) -> None:
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
