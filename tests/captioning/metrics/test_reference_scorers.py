"""BLEU, ROUGE-L and CIDEr-D against pycocoevalcap's scorers, on random and awkward captions."""

from collections.abc import Sequence

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from captioning.metrics.bleu import corpus_bleu
from captioning.metrics.cider import CiderD
from captioning.metrics.rouge import rouge_l
from tests.captioning.metrics.captions import random_corpus

Corpus = tuple[list[list[str]], list[list[list[str]]]]

AWKWARD: list[Corpus] = [
    ([[]], [[["a", "man"]]]),
    ([[]], [[[]]]),
    ([["a"]], [[["a"]]]),
    ([["a"]], [[["a", "dog"], ["a", "dog"]]]),
    ([["a", "man"]], [[["a", "man"], ["a", "man"]]]),
    ([["x"], ["a", "dog", "runs"]], [[["y"]], [["a", "dog", "runs"], ["a", "dog", "sits"]]]),
    ([["a"] * 30, ["a", "b"]], [[["a", "b", "c"]], [["a", "b"], ["b", "a"], []]]),
    # Closest reference length: one shorter and one longer by the same.
    ([["a", "b", "c", "d"]], [[["a", "b", "c", "d", "e"], ["a", "b", "c"]]]),
]
CORPORA = AWKWARD + [random_corpus(seed) for seed in range(6)]


def as_scored(corpus: Corpus) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    candidates, references = corpus
    originals = {image: [" ".join(each) for each in texts] for image, texts in enumerate(references)}
    return originals, {image: [" ".join(text)] for image, text in enumerate(candidates)}


def close(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    return list(ours) == pytest.approx(list(theirs), rel=0, abs=1e-9)


@pytest.mark.parametrize("corpus", CORPORA)
def test_bleu(corpus: Corpus) -> None:
    theirs, _ = Bleu(4).compute_score(*as_scored(corpus), verbose=0)
    assert close(corpus_bleu(*corpus), theirs)


@pytest.mark.parametrize("corpus", CORPORA)
def test_rouge_l(corpus: Corpus) -> None:
    _, theirs = Rouge().compute_score(*as_scored(corpus))
    assert close([rouge_l(text, originals) for text, originals in zip(*corpus, strict=True)], theirs)


@pytest.mark.parametrize("corpus", [corpus for corpus in CORPORA if any(any(texts) for texts in corpus[1])])
def test_cider_d(corpus: Corpus) -> None:
    _, theirs = Cider().compute_score(*as_scored(corpus))
    scorer = CiderD(corpus[1])
    assert close([scorer.score(text, originals) for text, originals in zip(*corpus, strict=True)], theirs)
