"""Self-retrieval: ranks against those computed with the scorer, and examples worked out by hand."""

import pytest

from captioning.metrics.cider import CiderD
from captioning.metrics.retrieval import own_ranks, recall_at
from tests.captioning.metrics.captions import random_corpus

Tokens = list[str]


def ranks(candidates: list[Tokens], references: list[list[Tokens]]) -> list[int]:
    scorer = CiderD(references)
    vectors = [scorer.vector(tokens) for tokens in candidates]
    return own_ranks(vectors, [[scorer.vector(tokens) for tokens in originals] for originals in references])


@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_those_of_scoring_every_pair(seed: int) -> None:
    candidates, references = random_corpus(seed)
    scorer = CiderD(references)
    expected = []
    for photo, candidate in enumerate(candidates):
        scores = [scorer.score(candidate, originals) for originals in references]
        expected.append(sum(score >= scores[photo] - 1e-9 for score in scores))
    assert ranks(candidates, references) == expected
    assert len(set(expected)) > 1


def test_a_caption_finds_the_photo_that_it_tells_of() -> None:
    references = [[["a", "dog", "runs"]], [["two", "men", "sit"]], [["red", "bike", "here"]], [["snow", "on", "trees"]]]
    right = [originals[0] for originals in references]
    assert ranks(right, references) == [1, 1, 1, 1]
    turned = [right[1], right[0], right[2], right[3]]
    # A caption of another photo finds that one first; its own ranks with all unrelated ones.
    assert ranks(turned, references) == [4, 4, 1, 1]


def test_a_tie_is_taken_at_its_worst() -> None:
    references = [[["a", "dog", "runs"]], [["two", "men", "sit"]], [["a", "dog", "runs"]], [["two", "men", "sit"]]]
    assert ranks([["a", "dog"], ["two"], ["a", "dog"], []], references) == [2, 2, 2, 4]
    # A caption of words that all photos share fits all of them, and finds none.
    same = [[["a", "photo"]], [["a", "photo"]], [["a", "photo"]]]
    assert ranks([["a", "photo"]] * 3, same) == [3, 3, 3]


def test_a_photo_with_more_references_is_not_nearer_for_that() -> None:
    references = [[["a", "dog", "runs"], ["x", "y"]], [["a", "dog", "runs"]], [["z"]]]
    assert ranks([["a", "dog", "runs"], ["a", "dog", "runs"], ["z"]], references) == [2, 1, 1]


def test_recall_is_a_percentage() -> None:
    assert recall_at([1, 2, 11, 10], 1) == 25
    assert recall_at([1, 2, 11, 10], 10) == 75
