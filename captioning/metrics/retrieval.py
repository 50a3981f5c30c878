"""Self-retrieval: whether a caption finds its own photo among all photos of the set.

Photos are ranked by the CIDEr-D of the caption with their references. A captioner that writes what fits any photo can
have a good BLEU and CIDEr-D, but scores badly here (after Dai and Lin 2017, "Contrastive Learning for Image
Captioning", who rank by likelihood).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from captioning.metrics.cider import SIGMA, CiderVector

# Scores that differ by less count as equal: the order of summation differs.
_TOLERANCE = 1e-9

_Array = np.ndarray[Any, Any]


def own_ranks(candidates: Sequence[CiderVector], references: Sequence[Sequence[CiderVector]]) -> list[int]:
    """For each caption the rank of its own photo among all photos; 1 is the best.

    `references` holds each photo's captions, at least one, in the order of `candidates`; all vectors come from one
    `CiderD`. In ties the own photo ranks last, so that a caption that fits all photos, or none, finds nothing.
    """
    index = _Index(candidates, references)
    ranks = []
    for photo, candidate in enumerate(candidates):
        scores = index.scores(candidate)
        ranks.append(int((scores >= scores[photo] - _TOLERANCE).sum()))
    return ranks


def recall_at(ranks: Sequence[int], k: int) -> float:
    """R@k: the percentage of captions whose own photo ranks among the first `k`."""
    return 100 * sum(rank <= k for rank in ranks) / len(ranks)


class _Index:
    """An inverted index of the references by n-gram, limited to the n-grams of the candidates."""

    def __init__(self, candidates: Sequence[CiderVector], references: Sequence[Sequence[CiderVector]]) -> None:
        flat = [vector for originals in references for vector in originals]
        norms = np.array([vector.norms for vector in flat])
        self._orders: list[dict[str, tuple[_Array, _Array, _Array]]] = []
        for order in range(norms.shape[1]):
            wanted = {ngram for vector in candidates for ngram in vector.weights[order]}
            places: dict[str, list[int]] = {}
            weights: dict[str, list[float]] = {}
            for place, vector in enumerate(flat):
                theirs = vector.weights[order]
                # Iterate in the order of the text, so that rounding is the same in every process.
                for ngram in theirs:
                    if ngram in wanted and theirs[ngram]:
                        places.setdefault(ngram, []).append(place)
                        weights.setdefault(ngram, []).append(theirs[ngram])
            postings = {}
            for ngram, found in places.items():
                at, values = np.array(found), np.array(weights[ngram])
                postings[ngram] = (at, values, values / norms[at, order])
            self._orders.append(postings)
        self._lengths = np.array([vector.length for vector in flat])
        counts = [len(originals) for originals in references]
        self._starts = np.cumsum([0, *counts[:-1]])
        self._counts = np.array(counts)

    def scores(self, candidate: CiderVector) -> _Array:
        """CIDEr-D (N,) in 0..10 of one caption with each photo's references."""
        totals = np.zeros(len(self._lengths))
        for postings, weights, norm in zip(self._orders, candidate.weights, candidate.norms, strict=True):
            for ngram, weight in weights.items():
                if weight and ngram in postings:
                    at, theirs, scaled = postings[ngram]
                    totals[at] += np.minimum(weight, theirs) * scaled / norm
        totals *= np.exp(-((candidate.length - self._lengths) ** 2) / (2 * SIGMA**2))
        means: _Array = 10 * np.add.reduceat(totals, self._starts) / self._counts / len(self._orders)
        return means
