"""What a person scores: one human caption of each photo against the photo's others. Knows text only."""

from collections.abc import Mapping, Sequence

from captioning.errors import InputError
from captioning.metrics.score import score_captions

#: A person is scored at most this many times, each time with another caption of every photo.
MOST_CHOICES = 5


def has_people(references: Mapping[str, Sequence[str]]) -> bool:
    """Whether every photo has a caption to spare: two or more."""
    return bool(references) and all(len(texts) > 1 for texts in references.values())


def people_scores(references: Mapping[str, Sequence[str]], *, meteor: bool = False) -> dict[str, float]:
    """The mean summary of `score_captions` over the choices of which caption is scored.

    In choice c the c-th caption of every photo is scored against the photo's others (a photo with
    fewer captions begins again at its first), so with five captions there are five choices, each
    against four. A captioner is scored against all five, which makes its BLEU a little easier to
    get. Raises `InputError` where a photo has fewer than two captions.
    """
    if not has_people(references):
        single = [image for image, texts in references.items() if len(texts) < 2]
        raise InputError(
            f"{len(single)} photos have fewer than two captions{f', {single[0]!r} for one' if single else ''}: "
            "what a person scores cannot be told. Set people to false."
        )
    choices = min(MOST_CHOICES, max(map(len, references.values())))
    summaries = []
    for choice in range(choices):
        at = {image: choice % len(texts) for image, texts in references.items()}
        chosen = {image: references[image][place] for image, place in at.items()}
        others = {image: [*references[image][:place], *references[image][place + 1 :]] for image, place in at.items()}
        summaries.append(score_captions(chosen, others, meteor=meteor).summary())
    return {name: sum(summary[name] for summary in summaries) / choices for name in summaries[0]}
