"""CIDEr-D (Vedantam et al. 2015), equal to pycocoevalcap's scorer, which calls it CIDEr.

Document frequencies come from references given once, so that the same scorer can be kept as a
reward (self-critical training) whatever captions it meets. Scores with other document
frequencies, those of a subset for instance, are not comparable. Knows tokens only.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Tokens = Sequence[str]
Ngram = tuple[str, ...]

_ORDER = 4
_SIGMA = 6.0


@dataclass(frozen=True)
class CiderVector:
    """A caption as TF-IDF weights of its n-grams, one mapping an order, with their norms."""

    weights: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    length: int
    """Number of bigrams, which is what the reference scorer takes for the caption's length."""


class CiderD:
    """Scores captions with the document frequencies of `references`: for each image, its captions."""

    def __init__(self, references: Iterable[Sequence[Tokens]]) -> None:
        self.document_frequency: Counter[Ngram] = Counter()
        self.num_images = 0
        for captions in references:
            self.num_images += 1
            self.document_frequency.update({ngram for tokens in captions for ngram in _ngram_counts(tokens)})
        if self.num_images == 0:
            raise ValueError("CIDEr-D needs the references of at least one image for its document frequencies.")
        self._log_images = math.log(self.num_images)

    def score(self, candidate: Tokens, references: Sequence[Tokens]) -> float:
        """CIDEr-D in 0..10 of one caption; papers multiply by 100."""
        return self.score_vector(self.vector(candidate), [self.vector(reference) for reference in references])

    def vector(self, tokens: Tokens) -> CiderVector:
        """The caption's TF-IDF vector, for `score_vector`; make it once where captions come again."""
        weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in range(_ORDER))
        squares = [0.0] * _ORDER
        length = 0
        for ngram, count in _ngram_counts(tokens).items():
            order = len(ngram) - 1
            weight = count * (self._log_images - math.log(max(1, self.document_frequency[ngram])))
            weights[order][ngram] = weight
            squares[order] += weight * weight
            if order == 1:
                length += count
        return CiderVector(weights, tuple(math.sqrt(square) for square in squares), length)

    def score_vector(self, candidate: CiderVector, references: Sequence[CiderVector]) -> float:
        """As `score`, of vectors that `vector` made."""
        return 10.0 * sum(_similarity(candidate, reference) for reference in references) / len(references) / _ORDER


def _ngram_counts(tokens: Tokens) -> Counter[Ngram]:
    return Counter(
        tuple(tokens[at : at + order]) for order in range(1, _ORDER + 1) for at in range(len(tokens) - order + 1)
    )


def _similarity(candidate: CiderVector, reference: CiderVector) -> float:
    """Sum over the orders of the clipped cosine, under a Gaussian of the difference in length."""
    total = 0.0
    for order in range(_ORDER):
        theirs = reference.weights[order]
        product = sum(
            min(weight, theirs[ngram]) * theirs[ngram]
            for ngram, weight in candidate.weights[order].items()
            if ngram in theirs
        )
        scale = candidate.norms[order] * reference.norms[order]
        total += product / scale if scale != 0 else product
    return total * math.exp(-((candidate.length - reference.length) ** 2) / (2 * _SIGMA**2))
