"""Random and awkward captions for the tests of the metrics."""

import random

WORDS = (
    *("a", "man", "dog", "in", "red", "hat", "runs", "on", "the"),
    *("beach", "with", "two", "children", "and", "his", "big", "brown", "bike"),
)


def random_corpus(seed: int, images: int = 60) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Candidates and references as tokens, one to five references each; some captions are awkward."""
    source = random.Random(seed)

    def caption() -> list[str]:
        return source.choices(WORDS, k=source.randint(1, 16))

    candidates, references = [], []
    for image in range(images):
        originals = [caption() for _ in range(source.randint(1, 5))]
        candidate = source.choice(originals)[: source.randint(1, 12)] + caption()[: source.randint(0, 6)]
        kind = image % 10
        if kind == 0:
            candidate = []
        elif kind == 1:
            candidate = [source.choice(WORDS)]
        elif kind == 2:
            originals = [originals[0]] * 3
        elif kind == 3:
            originals = [[source.choice(WORDS)]]
        elif kind == 4:
            candidate = list(originals[-1])
        elif kind == 5:
            originals.append([])
        elif kind == 6:
            candidate = ["zebra"] * source.randint(1, 9)
        elif kind == 7:
            candidate = originals[0] * 2
        candidates.append(candidate)
        references.append(originals)
    return candidates, references
