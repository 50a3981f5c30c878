"""Captions a split with one or several decodings, scores the captions, and formats the results for a file.

Captioning and scoring are those of validation during training.
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
    from captioning.training.validation import CaptionedSample


@dataclass(frozen=True)
class Evaluation:
    """The captions and scores of one decoding."""

    decoding: "DecodingSettings"
    captioned: "Sequence[CaptionedSample]"
    scores: "Scores"


def evaluate_split(
    captioner: "Captioner",
    shards: "ShardSet",
    split: str,
    decodings: Sequence[Mapping[str, Any]],
    parsed: EvaluateSettings,
    meteor: bool,
) -> list[Evaluation]:
    """Caption a split with each of `decodings`, laid over the captioner's own, and score the captions.

    Images are encoded once for all decodings.
    """
    from captioning.captioner_info import override_decoding
    from captioning.training.validation import caption_split_each, score_samples
    from jobs.progress import Progress

    images = min(parsed.images or shards.counts[split], shards.counts[split])
    resolved = [override_decoding(captioner.decoding, decoding) for decoding in decodings]
    with Progress(images * len(resolved)) as progress:
        captioned = caption_split_each(
            captioner,
            shards,
            split,
            resolved,
            images=parsed.images,
            batch_size=parsed.batch_size,
            on_progress=lambda done: progress.add(done - progress.done, 0),
        )
    return [
        Evaluation(decoding, samples, score_samples(samples, meteor=meteor))
        for decoding, samples in zip(resolved, captioned, strict=True)
    ]


def people_of(evaluation: Evaluation, parsed: EvaluateSettings) -> tuple[dict[str, float] | None, str | None]:
    """What a person scores, or None if not wanted or impossible; and why it is impossible."""
    from captioning.metrics.people import people_scores

    if parsed.people is False:
        return None, None
    references = {sample.key: sample.references for sample in evaluation.captioned}
    try:
        return people_scores(references, meteor=parsed.meteor is True), None
    except InputError as error:
        return None, str(error)


def as_json(about: Mapping[str, str], evaluations: Sequence[Evaluation], people: Mapping[str, float] | None) -> str:
    """One JSON object with the fields of `about`, the metrics of each decoding, and what people score."""
    rows = [{"decoding": to_dict(each.decoding), "metrics": each.scores.summary()} for each in evaluations]
    return json.dumps({**about, "evaluations": rows, "people": people}, indent=2, ensure_ascii=False) + "\n"


def as_lines(evaluations: Sequence[Evaluation]) -> str:
    """A JSON line for each image and decoding: the caption, its references and scores."""
    lines = [
        {
            "key": sample.key,
            "image_id": sample.image_id,
            "beam_size": evaluation.decoding.beam_size,
            "caption": sample.caption.text,
            "references": list(sample.references),
            "score": sample.caption.score,
            "num_tokens": sample.caption.num_tokens,
            "ended": sample.caption.ended,
            "cider_d": evaluation.scores.cider_d_of[sample.key],
            "own_rank": evaluation.scores.rank_of[sample.key],
        }
        for evaluation in evaluations
        for sample in evaluation.captioned
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
