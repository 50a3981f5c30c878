"""Detects flawed captions: those that repeat themselves or break off."""

from collections.abc import Sequence

Tokens = Sequence[str]

# Words that cannot end a sentence. Others that can, as in "a car drives by", are left out (by, behind, over, her, …).
_DANGLING = frozenset(
    (
        *("a", "an", "the", "his", "their", "its"),
        *("of", "with", "in", "on", "at", "to", "for", "from", "into", "onto"),
        *("and", "or", "but", "as", "while", "than", "that", "which", "who", "is", "are"),
    )
)
# "While another man looks on."
_LOOKS = frozenset(["look", "looks", "looking", "looked"])


def repeats_itself(tokens: Tokens) -> bool:
    """Whether one or two words occur twice in a row, or three words twice anywhere.

    False for `a dog and a dog`, True for `a man a man` and `a man in red and a man in blue`. True for 0.7% of the
    reference captions of Flickr30k, nearly always because of three words.
    """
    for size in (1, 2):
        for at in range(len(tokens) - 2 * size + 1):
            if tokens[at : at + size] == tokens[at + size : at + 2 * size]:
                return True
    trigrams = [tuple(tokens[at : at + 3]) for at in range(len(tokens) - 2)]
    return len(set(trigrams)) < len(trigrams)


def breaks_off(tokens: Tokens) -> bool:
    """Whether the caption is empty or its last word needs another one: an article, a preposition, a conjunction.

    True for 0.1% of the reference captions of Flickr30k.
    """
    if not tokens:
        return True
    if tokens[-1] == "on" and len(tokens) > 1 and tokens[-2] in _LOOKS:
        return False
    return tokens[-1] in _DANGLING
