"""Smoothed BLEU-4 of single captions, for rewards. Not comparable with `corpus_bleu`."""

import math
from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]

_ORDER = 4


class SentenceBleu:
    """BLEU+1 (Lin & Och 2004, "ORANGE") against the captions of one image, at least one.

    Adds 1 to numerator and denominator of the precisions of bigrams and longer n-grams, so that a caption without a
    matching 4-gram does not score 0.
    """

    def __init__(self, references: Sequence[Tokens]) -> None:
        self._lengths = [len(tokens) for tokens in references]
        self._allowed: list[Counter[str]] = [Counter() for _ in range(_ORDER)]
        for tokens in references:
            for allowed, ngrams in zip(self._allowed, _ngrams(tokens), strict=True):
                for ngram, count in Counter(ngrams).items():
                    if allowed[ngram] < count:
                        allowed[ngram] = count

    def score(self, candidate: Tokens) -> float:
        """BLEU-4 in 0..1."""
        total = 0.0
        for order, (allowed, ngrams) in enumerate(zip(self._allowed, _ngrams(candidate), strict=True)):
            matches = sum(min(count, allowed[ngram]) for ngram, count in Counter(ngrams).items())
            if matches == 0 and order == 0:
                return 0.0
            added = 0 if order == 0 else 1
            total += math.log((matches + added) / (len(ngrams) + added))
        closest = min((abs(length - len(candidate)), length) for length in self._lengths)[1]
        brevity = min(0.0, 1 - closest / len(candidate))
        return math.exp(total / _ORDER + brevity)


def _ngrams(tokens: Tokens) -> list[list[str]]:
    """The n-grams of each order, joined by spaces."""
    return [
        [" ".join(tokens[at : at + order]) for at in range(len(tokens) - order + 1)] for order in range(1, _ORDER + 1)
    ]
