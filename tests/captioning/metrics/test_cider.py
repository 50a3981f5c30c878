"""CIDEr-D with fixed document frequencies."""

import gzip
import math

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


def test_frequencies_that_were_kept_score_as_those_that_were_counted() -> None:
    candidates, references = random_corpus(9)
    counted = CiderD(references, source="here")
    data = counted.to_bytes()
    kept = CiderD.from_bytes(data)
    assert (kept.source, kept.num_images, kept.to_bytes()) == ("here", len(references), data)
    given = CiderD.from_frequencies(counted.document_frequency, counted.num_images)
    for text, originals in zip(candidates, references, strict=True):
        score = counted.score(text, originals)
        assert kept.score(text, originals) == score
        assert given.score(text, originals) == score


def test_frequencies_of_other_references_score_otherwise() -> None:
    candidates, references = random_corpus(9)
    half = CiderD(references[:30])
    pairs = list(zip(candidates, references, strict=True))
    assert [half.score(*pair) for pair in pairs] != [CiderD(references).score(*pair) for pair in pairs]


def test_an_ngram_of_one_image_weighs_as_one_of_none_and_takes_no_room() -> None:
    scorer = CiderD([[["a", "man", "runs"]], [["a", "man", "sits"], ["a", "man"]], [["two", "dogs"]]])
    assert scorer.document_frequency == {"a": 2, "man": 2, "a man": 2}
    assert scorer.vector(["runs"]).weights[0]["runs"] == scorer.vector(["zebra"]).weights[0]["zebra"] == math.log(3)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"words", id="no-gzip"),
        # `mtime` is fixed, since pytest-xdist needs the same test id in every process.
        pytest.param(gzip.compress(b"{}", mtime=0), id="an-object"),
        pytest.param(gzip.compress(b"[1", mtime=0), id="cut-off"),
        pytest.param(gzip.compress(b"[]", mtime=0), id="an-empty-list"),
    ],
)
def test_other_files_are_no_frequencies(data: bytes) -> None:
    with pytest.raises(ValueError):
        CiderD.from_bytes(data)
