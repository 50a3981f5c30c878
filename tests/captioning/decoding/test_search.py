"""The search against exhaustive enumeration, and its promises about batches and scores."""

import itertools
import pickle

import pytest
import torch

from captioning.config import build
from captioning.decoding.search import decode
from captioning.decoding.settings import DecodingSettings
from captioning.errors import LogitsError, SettingsError
from tests.captioning.decoding.fakes import TableStepper

EOS = 0


def all_captions(vocab: int, length: int) -> list[tuple[int, ...]]:
    """Every sequence that a search can return: ended by EOS, or of the full length."""
    words = [token for token in range(vocab) if token != EOS]
    captions = [(*body, EOS) for size in range(length) for body in itertools.product(words, repeat=size)]
    return captions + list(itertools.product(words, repeat=length))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_captions(length_penalty: float) -> None:
    vocab, length = 4, 4
    stepper = TableStepper.random(6, vocab, seed=1, sharpness=1.0)
    settings = DecodingSettings(beam_size=81, num_captions=10, max_new_tokens=length, length_penalty=length_penalty)
    found = decode(stepper, settings, eos_id=EOS)
    for image, hypotheses in enumerate(found):
        ranked = sorted(
            all_captions(vocab, length),
            key=lambda tokens: -stepper.log_prob(image, tokens) / len(tokens) ** length_penalty,
        )
        expected = [tuple(token for token in tokens if token != EOS) for tokens in ranked[:10]]
        assert [hypothesis.tokens for hypothesis in hypotheses] == expected


def test_greedy_takes_the_likeliest_token_each_time() -> None:
    stepper = TableStepper.random(20, 9, seed=2, eos_bonus=1.0)
    for image, (hypothesis,) in enumerate(
        decode(stepper, DecodingSettings(beam_size=1, max_new_tokens=12), eos_id=EOS)
    ):
        before, last, expected = 0, 0, []
        for step in range(12):
            logits = stepper.first[image] if step == 0 else stepper.table[image, before, last]
            expected.append(int(logits.argmax()))
            if expected[-1] == EOS:
                break
            before, last = last, expected[-1]
        assert list(hypothesis.tokens) == [token for token in expected if token != EOS]
        assert hypothesis.num_tokens == len(expected)


@pytest.mark.parametrize("beam_size", [1, 2, 4])
def test_scores_are_mean_log_probabilities_of_the_model_itself(beam_size: int) -> None:
    stepper = TableStepper.random(12, 8, seed=3, eos_bonus=1.0)
    settings = DecodingSettings(
        beam_size=beam_size, num_captions=beam_size, max_new_tokens=7, repetition_penalty=1.7, length_penalty=0.5
    )
    for image, hypotheses in enumerate(decode(stepper, settings, eos_id=EOS)):
        assert len(hypotheses) == beam_size
        ranks = [hypothesis.rank_score for hypothesis in hypotheses]
        assert ranks == sorted(ranks, reverse=True)
        for hypothesis in hypotheses:
            ended = hypothesis.num_tokens == len(hypothesis.tokens) + 1
            assert ended or hypothesis.num_tokens == len(hypothesis.tokens) == 7
            tokens = (*hypothesis.tokens, EOS) if ended else hypothesis.tokens
            assert hypothesis.score == pytest.approx(stepper.log_prob(image, tokens) / len(tokens), abs=1e-5)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_an_image_has_the_same_captions_in_any_batch(beam_size: int) -> None:
    stepper = TableStepper.random(24, 10, seed=4, eos_bonus=1.5)
    settings = DecodingSettings(
        beam_size=beam_size, num_captions=beam_size, max_new_tokens=10, repetition_penalty=1.2, no_repeat_ngram_size=2
    )
    together = decode(stepper, settings, eos_id=EOS, banned=(1,))
    alone = [decode(stepper.only([image]), settings, eos_id=EOS, banned=(1,))[0] for image in range(24)]
    assert together == alone
    backwards = decode(stepper.only(range(23, -1, -1)), settings, eos_id=EOS, banned=(1,))
    assert backwards[::-1] == together


@pytest.mark.parametrize("beam_size", [1, 3])
def test_finished_images_leave_the_batch(beam_size: int) -> None:
    stepper = TableStepper.random(16, 6, seed=5)
    ends_early = torch.arange(16) % 2 == 0
    stepper.first[:, EOS] = -50
    stepper.table[..., EOS] = torch.where(ends_early, 50.0, -50.0)[:, None, None]
    decode(stepper, DecodingSettings(beam_size=beam_size, max_new_tokens=6), eos_id=EOS)
    # The first token, the end of half of the images, and the rest up to the limit.
    assert stepper.rows_seen == [16, 16 * beam_size, *[8 * beam_size] * 4]


def test_no_images_no_captions() -> None:
    stepper = TableStepper.random(2, 5, seed=6).only([])
    for beam_size in (1, 3):
        assert decode(stepper, DecodingSettings(beam_size=beam_size), eos_id=EOS) == []


def test_an_empty_caption_is_a_caption() -> None:
    stepper = TableStepper.random(1, 5, seed=7)
    stepper.first[0, EOS] = 100
    for beam_size in (1, 2):
        best = decode(stepper, DecodingSettings(beam_size=beam_size), eos_id=EOS)[0][0]
        assert best.tokens == ()
        assert best.num_tokens == 1


def test_fewer_captions_than_beams_where_no_more_are_possible() -> None:
    stepper = TableStepper.random(3, 3, seed=8, sharpness=1.0)
    settings = DecodingSettings(beam_size=8, num_captions=8, max_new_tokens=2)
    for hypotheses in decode(stepper, settings, eos_id=EOS, banned=(2,)):
        assert sorted(hypothesis.tokens for hypothesis in hypotheses) == [(), (1,), (1, 1)]


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_name_their_image(beam_size: int, bad: float) -> None:
    stepper = TableStepper.random(5, 6, seed=9)
    stepper.first[:, EOS] = -50
    stepper.first[1, EOS] = 500  # finishes at once: rows are then no longer image numbers
    stepper.table[3, ..., 4] = bad
    with pytest.raises(LogitsError, match="image 3 of the batch") as caught:
        decode(stepper, DecodingSettings(beam_size=beam_size), eos_id=EOS)
    assert caught.value.images == (3,)
    assert pickle.loads(pickle.dumps(caught.value)).images == (3,)


def test_settings_are_checked() -> None:
    assert build(DecodingSettings, {"beam_size": 5, "num_captions": 5}).num_captions == 5
    for wrong in (
        {"beam_size": 0},
        {"beam_size": 2, "num_captions": 3},
        {"repetition_penalty": 0.0},
        {"min_new_tokens": 9, "max_new_tokens": 8},
        {"beams": 2},
    ):
        with pytest.raises(SettingsError):
            build(DecodingSettings, wrong)
