"""BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002), equal to pycocoevalcap's scorer.

Counts are summed over the corpus. The brevity penalty uses each caption's reference of the closest length, the
shorter one in a tie.
"""

import math
from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]

_ORDER = 4
# As in the reference scorer: zero matches give a product of about zero, and divisions by zero are avoided.
_TINY = 1e-15
_SMALL = 1e-9


def corpus_bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, ...]:
    """BLEU-1, -2, -3, -4 in 0..1 of `candidates` against their `references`, at least one each."""
    matches, totals = [0] * _ORDER, [0] * _ORDER
    length = reference_length = 0
    for candidate, originals in zip(candidates, references, strict=True):
        length += len(candidate)
        reference_length += min((abs(len(each) - len(candidate)), len(each)) for each in originals)[1]
        for order in range(1, _ORDER + 1):
            allowed: Counter[tuple[str, ...]] = Counter()
            for original in originals:
                allowed |= _ngrams(original, order)
            matches[order - 1] += (_ngrams(candidate, order) & allowed).total()
            totals[order - 1] += max(0, len(candidate) - order + 1)
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for order in range(1, _ORDER + 1):
        product *= (matches[order - 1] + _TINY) / (totals[order - 1] + _SMALL)
        scores.append(product ** (1 / order) * brevity)
    return tuple(scores)


def _ngrams(tokens: Tokens, order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[at : at + order]) for at in range(len(tokens) - order + 1))
