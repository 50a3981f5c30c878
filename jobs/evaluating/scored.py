"""A split captioned by one or several decodings and scored, and how that is written to a file.

Captioning a split and scoring are those of training's validation. Knows nothing of command lines.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captioning.config import to_dict
from captioning.errors import InputError
from jobs.evaluating.settings import EvaluateSettings

if TYPE_CHECKING:
    from captioning.captioner import Captioner
    from captioning.data.shards import ShardSet
    from captioning.decoding.settings import DecodingSettings
    from captioning.metrics.score import Scores
    from captioning.training.validation import Described


@dataclass(frozen=True)
class Evaluation:
    """What one beam size brought."""

    decoding: "DecodingSettings"
    described: "Sequence[Described]"
    scores: "Scores"


def evaluate_split(
    captioner: "Captioner",
    shards: "ShardSet",
    split: str,
    decodings: Sequence[Mapping[str, Any]],
    parsed: EvaluateSettings,
    meteor: bool,
) -> list[Evaluation]:
    """Caption a split by each of `decodings` over the captioner's own, encoded once; score each, METEOR where asked."""
    from captioning.captioner_info import override_decoding
    from captioning.training.validation import describe_each, score
    from jobs.progress import Progress

    images = min(parsed.images or shards.counts[split], shards.counts[split])
    asked = [override_decoding(captioner.decoding, decoding) for decoding in decodings]
    with Progress(images * len(asked)) as progress:
        described = describe_each(
            captioner,
            shards,
            split,
            asked,
            images=parsed.images,
            batch_size=parsed.batch_size,
            tell=lambda done: progress.add(done - progress.done, 0),
        )
    return [
        Evaluation(decoding, each, score(each, meteor=meteor)) for decoding, each in zip(asked, described, strict=True)
    ]


def people_of(evaluation: Evaluation, parsed: EvaluateSettings) -> tuple[dict[str, float] | None, str | None]:
    """What a person scores, where it is wanted; else None, and why it cannot be told."""
    from captioning.metrics.people import people_scores

    if parsed.people is False:
        return None, None
    references = {described.key: described.references for described in evaluation.described}
    try:
        return people_scores(references, meteor=parsed.meteor is True), None
    except InputError as error:
        return None, str(error)


def as_json(about: Mapping[str, str], evaluations: Sequence[Evaluation], people: Mapping[str, float] | None) -> str:
    """The metrics of each decoding, what it was `about`, and what people score: one JSON object."""
    rows = [{"decoding": to_dict(each.decoding), "metrics": each.scores.summary()} for each in evaluations]
    return json.dumps({**about, "evaluations": rows, "people": people}, indent=2, ensure_ascii=False) + "\n"


def as_lines(evaluations: Sequence[Evaluation]) -> str:
    """A JSON line for each image and decoding: the caption, its references and scores."""
    lines = [
        {
            "key": described.key,
            "image_id": described.image_id,
            "beam_size": evaluation.decoding.beam_size,
            "caption": described.caption.text,
            "references": list(described.references),
            "score": described.caption.score,
            "num_tokens": described.caption.num_tokens,
            "ended": described.caption.ended,
            "cider_d": evaluation.scores.cider_d_of[described.key],
            "own_rank": evaluation.scores.rank_of[described.key],
        }
        for evaluation in evaluations
        for described in evaluation.described
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
