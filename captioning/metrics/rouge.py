"""ROUGE-L of captions (Lin 2004), equal to pycocoevalcap's scorer."""

from collections.abc import Sequence

Tokens = Sequence[str]

_BETA = 1.2


def rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    """F-measure in 0..1 of the longest common subsequence, with beta 1.2.

    As in the reference scorer, the best precision and the best recall may come from different references, and an
    empty caption counts as one empty token.
    """
    tokens = list(candidate) or [""]
    originals = [list(reference) or [""] for reference in references]
    common = [_common_length(tokens, original) for original in originals]
    precision = max(length / len(tokens) for length in common)
    recall = max(length / len(original) for length, original in zip(common, originals, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_length(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if token == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]
