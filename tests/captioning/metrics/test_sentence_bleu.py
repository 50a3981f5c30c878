"""Sentence BLEU with add-one smoothing of bigrams and longer."""

import math

import pytest

from captioning.metrics.sentence_bleu import SentenceBleu


def test_a_score_counted_by_hand() -> None:
    scorer = SentenceBleu([["a", "man", "runs", "on", "a", "beach"], ["the", "man", "runs", "fast"]])
    # Words: a man runs of 4 (a twice, allowed twice); pairs: 2 of 3; threes: 1 of 2; fours: 0 of 1. Length 4 is there.
    expected = (4 / 4 * (2 + 1) / (3 + 1) * (1 + 1) / (2 + 1) * (0 + 1) / (1 + 1)) ** 0.25
    assert scorer.score(["a", "man", "runs", "a"]) == pytest.approx(expected)


def test_a_reference_scores_one_and_no_common_word_nothing() -> None:
    scorer = SentenceBleu([["a", "man", "runs", "on", "a", "beach"], ["the", "man", "runs", "fast"]])
    assert scorer.score(["a", "man", "runs", "on", "a", "beach"]) == pytest.approx(1)
    assert scorer.score(["two", "dogs"]) == 0
    assert scorer.score([]) == 0


def test_repeats_count_as_often_as_one_reference_has_them_and_short_captions_pay() -> None:
    scorer = SentenceBleu([["a", "dog", "and", "a", "cat"], ["a", "dog"]])
    doubled = scorer.score(["a", "a", "a", "a"])
    assert doubled == pytest.approx((2 / 4 * 1 / 4 * 1 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 5 / 4))
