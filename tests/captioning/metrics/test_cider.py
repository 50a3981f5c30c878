"""CIDEr-D kept with the document frequencies of one corpus."""

import pytest

from captioning.metrics.cider import CiderD
from tests.captioning.metrics.captions import random_corpus


def test_a_score_does_not_depend_on_what_was_scored_before() -> None:
    candidates, references = random_corpus(7)
    scorer = CiderD(references)
    pairs = list(zip(candidates, references, strict=True))
    forwards = [scorer.score(*pair) for pair in pairs]
    assert [scorer.score(*pair) for pair in reversed(pairs)] == forwards[::-1]
    assert scorer.score(["never", "seen"], [["words", "unknown", "here"]]) == 0


def test_vectors_can_be_kept() -> None:
    candidates, references = random_corpus(8)
    scorer = CiderD(references)
    kept = [[scorer.vector(tokens) for tokens in originals] for originals in references]
    for text, originals, vectors in zip(candidates, references, kept, strict=True):
        assert scorer.score_vector(scorer.vector(text), vectors) == scorer.score(text, originals)


def test_a_caption_equal_to_its_only_reference_scores_ten() -> None:
    scorer = CiderD([[["a", "man", "runs", "fast"]], [["two", "dogs", "sit", "down"]]])
    assert scorer.score(["a", "man", "runs", "fast"], [["a", "man", "runs", "fast"]]) == pytest.approx(10)


def test_no_references_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        CiderD([])
