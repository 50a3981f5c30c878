"""The human baseline: one reference caption of each photo scored against the photo's others."""

from collections.abc import Mapping, Sequence

from captioning.errors import InputError
from captioning.metrics.score import score_captions

#: The maximum number of rounds, each with another caption of every photo as the candidate.
MAX_ROUNDS = 5


def has_people(references: Mapping[str, Sequence[str]]) -> bool:
    """Whether every photo has at least two captions."""
    return bool(references) and all(len(texts) > 1 for texts in references.values())


def people_scores(references: Mapping[str, Sequence[str]], *, meteor: bool = False) -> dict[str, float]:
    """The mean summary of `score_captions` over rounds with different captions as candidates.

    In round r the r-th caption of every photo (modulo their number) is scored against the photo's others. With five
    captions there are five rounds against four references each. A captioner is scored against all five, which makes
    BLEU slightly easier. Raises `InputError` if a photo has fewer than two captions.
    """
    if not has_people(references):
        single = [image for image, texts in references.items() if len(texts) < 2]
        raise InputError(
            f"{len(single)} photos have fewer than two captions{f', such as {single[0]!r}' if single else ''}: "
            "the score of a person cannot be determined. Set people to false."
        )
    rounds = min(MAX_ROUNDS, max(map(len, references.values())))
    summaries = []
    for number in range(rounds):
        at = {image: number % len(texts) for image, texts in references.items()}
        candidates = {image: references[image][i] for image, i in at.items()}
        others = {image: [*references[image][:i], *references[image][i + 1 :]] for image, i in at.items()}
        summaries.append(score_captions(candidates, others, meteor=meteor).summary())
    return {name: sum(summary[name] for summary in summaries) / rounds for name in summaries[0]}
