"""Captions for the tests of the metrics: random, awkward, and realistic ones."""

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


_WHO = (
    *("a man", "a woman", "two young girls", "A boy", "Three people", "an older man's dog", "The children"),
    *("a black-and-white dog", "a football player (number 7)", "several 20-year-olds", "A bearded guy", "2 bikers"),
)
_WEARING = (
    *("", "", "", " in a red t-shirt", " wearing sunglasses", ", dressed for the cold,", ' with a "Go Team" sign'),
    *(" in a blue shirt and jeans", " carrying a backpack", " who isn't smiling"),
)
_DOES = (
    *("is standing", "are sitting", "runs", "jump", "is playing the guitar", "looks at a camera", "climbs a wall"),
    *("ride bicycles", "is being pulled", "walks", "can't be seen", "plays tug-of-war"),
)
_WHERE = (
    *("on the beach", "in front of a building", "in the snow", "at a street market", "near St. Mary's church"),
    *("down a busy street at 10:30 p.m.", "through shallow water", "in the background", "on a dirt path", ""),
)
_END = (".", " .", "", "!", "...", ", while another man looks on.")


def written_corpus(seed: int, images: int = 40) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Captions as text, one an image, and its five references: sentences with capitals, clitics and punctuation.

    An image's captions share words, as real ones do.
    """
    source = random.Random(seed)
    candidates, references = {}, {}
    for image in range(images):
        own = [source.sample(part, 3) for part in (_WHO, _WEARING, _DOES, _WHERE)]

        def sentence(own: list[list[str]] = own) -> str:
            who, wearing, does, where = (source.choice(part) for part in own)
            return f"{who}{wearing} {does} {where}".rstrip() + source.choice(_END)

        candidates[f"{image}.jpg"] = sentence().lower().rstrip(" .!")
        references[f"{image}.jpg"] = [sentence() for _ in range(5)]
    return candidates, references
