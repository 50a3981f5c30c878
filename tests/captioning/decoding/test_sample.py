"""Sampled captions follow the model's distribution and stop at their end token."""

import pytest
import torch

from captioning.decoding.sample import sample
from captioning.errors import LogitsError
from tests.captioning.decoding.fakes import TableStepper

PAD = -100


def draw(stepper: TableStepper, count: int, **options: object) -> torch.Tensor:
    torch.manual_seed(0)
    return sample(stepper, count=count, eos_id=0, **{"max_new_tokens": 2, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax_of_the_logits(temperature: float) -> None:
    stepper = TableStepper.random(2, 4, seed=1, sharpness=1.0)
    tokens = draw(stepper, 20_000, temperature=temperature).view(2, 20_000, 2)
    for image in range(2):
        first = (stepper.first[image] / temperature).softmax(0)
        torch.testing.assert_close(frequencies(tokens[image, :, 0]), first, atol=five_sigma(20_000), rtol=0)
        for token in range(1, 4):
            after = tokens[image][tokens[image, :, 0] == token][:, 1]
            second = (stepper.table[image, 0, token] / temperature).softmax(0)
            torch.testing.assert_close(frequencies(after), second, atol=five_sigma(len(after)), rtol=0)


def five_sigma(draws: int) -> float:
    return 2.5 / draws**0.5


def frequencies(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.bincount(minlength=4) / len(tokens)


def test_the_captions_of_an_image_are_adjacent_and_differ() -> None:
    first = torch.full((3, 5), -50.0)
    first[range(3), [1, 2, 3]] = 50  # each image has a first token of its own
    stepper = TableStepper(first, torch.zeros(3, 5, 5, 5))
    tokens = draw(stepper, 40, max_new_tokens=6)
    assert tokens[:, 0].tolist() == [1] * 40 + [2] * 40 + [3] * 40
    assert len({tuple(row) for row in tokens[:40].tolist()}) > 20


def test_captions_keep_their_end_token_and_are_padded_and_a_cut_one_has_none() -> None:
    stepper = TableStepper.random(3, 6, seed=2)
    tokens = draw(stepper, 200, max_new_tokens=4)
    kinds = set()
    for row in tokens.tolist():
        generated = [token for token in row if token != PAD]
        assert row == generated + [PAD] * (len(row) - len(generated))
        assert 0 not in generated[:-1]
        assert generated[-1] == 0 or len(generated) == 4
        kinds.add((generated[-1] == 0, len(generated)))
    assert {(True, 1), (True, 2), (True, 4), (False, 4)} <= kinds


def test_finished_captions_leave_the_batch() -> None:
    stepper = TableStepper.random(3, 6, seed=2)
    tokens = draw(stepper, 50, max_new_tokens=5)
    still_open = [int((tokens[:, step] > 0).sum()) for step in range(4)]
    assert stepper.rows_seen == [3, *still_open]
    assert still_open[0] < 150


def test_sampling_stops_when_all_are_finished() -> None:
    first = torch.tensor([[50.0, -50.0]])
    stepper = TableStepper(first, torch.zeros(1, 2, 2, 2))
    assert draw(stepper, 3, max_new_tokens=9).tolist() == [[0], [0], [0]]
    assert stepper.rows_seen == [1]


def test_banned_tokens_are_never_sampled_and_the_end_is_not_banned() -> None:
    stepper = TableStepper.random(2, 5, seed=3, sharpness=0.5)
    stepper.first[:, 2] += 20
    stepper.table[..., 2] += 20
    tokens = draw(stepper, 300, max_new_tokens=6, banned=(0, 2, 4))
    assert set(tokens.unique().tolist()) == {PAD, 0, 1, 3}


def test_the_same_seed_gives_the_same_captions() -> None:
    stepper = TableStepper.random(2, 6, seed=4)
    torch.manual_seed(7)
    one = sample(stepper, count=9, max_new_tokens=5, eos_id=0, pad=-1)
    torch.manual_seed(7)
    other = sample(stepper, count=9, max_new_tokens=5, eos_id=0, pad=-1)
    assert torch.equal(one, other)
    assert not torch.equal(one, sample(stepper, count=9, max_new_tokens=5, eos_id=0, pad=-1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    stepper = TableStepper.random(3, 5, seed=5)
    stepper.first[:, 0] = -50
    stepper.table[1, :, :, 3] = value
    with pytest.raises(LogitsError, match="image 1 "):
        draw(stepper, 4, max_new_tokens=3)
