"""Searches for the decoding settings that suit a captioner, by its scores on a validation split.

A first round tries beam sizes with length penalties, a second the settings against repetition with the best
of these. The full grid is not worth its time: most of it scores alike. Do not search on the split that results
are reported on.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioning.captioner import Captioner
from captioning.config import to_dict
from captioning.data.shards import ShardSet
from captioning.decoding.settings import DecodingSettings
from captioning.errors import CheckpointError
from captioning.models.checkpoint_config import CONFIG, read_config
from captioning.training.search_settings import SearchSettings
from captioning.training.validation import caption_split_each, score_samples
from captioning.training.workers import Workers

__all__ = ["FLAWS", "ScoredDecoding", "SearchSettings", "choose", "save_decoding", "search_decoding", "search_record"]

#: A decoding is rejected if any of these is higher than with the current one.
FLAWS = ("repetitions", "truncated", "unknown")

#: Called with the number of captions generated so far by all workers, and the number that all rounds will generate.
OnProgress = Callable[[int, int], None]


class ScoredDecoding(NamedTuple):
    """A decoding and the summary of its scores."""

    decoding: DecodingSettings
    scores: dict[str, float]


def search_decoding(
    captioner: Captioner,
    shards: ShardSet,
    split: str,
    settings: SearchSettings = SearchSettings(),
    workers: Workers | None = None,
    *,
    batch_size: int = 32,
    on_progress: OnProgress | None = None,
) -> list[ScoredDecoding]:
    """Every decoding tried on `split` with its scores: the chosen one first, then by score.

    The choice is the decoding with the highest CIDEr-D, or, among those within `margin` of it, the one with the
    fewest beams, then the fewest flaws, then the current one: on a few hundred images a point is chance. A
    decoding is never chosen if its captions repeat themselves, break off or contain unknown words more often than
    those of the current one. Each worker captions and scores a part, and all get the same list.
    """
    workers = workers or Workers()
    current = dataclasses.replace(captioner.decoding, num_captions=1)
    images = min(settings.images or shards.counts[split], shards.counts[split])
    first = _length_candidates(current, settings)
    tried: list[ScoredDecoding] = []

    def evaluate(decodings: Sequence[DecodingSettings], remaining: int) -> None:
        before = len(tried)

        def report(done: int) -> None:
            if on_progress is not None:
                total = (before + len(decodings) + remaining) * images
                on_progress(before * images + done * workers.world_size, total)

        captioned = caption_split_each(
            captioner,
            shards,
            split,
            decodings,
            workers=workers,
            images=settings.images,
            batch_size=batch_size,
            on_progress=report,
        )
        own = range(workers.rank, len(decodings), workers.world_size)
        gathered = workers.gather({at: score_samples(captioned[at]).summary() for at in own})
        scores = {at: summary for theirs in gathered for at, summary in theirs.items()}
        tried.extend(ScoredDecoding(decoding, scores[at]) for at, decoding in enumerate(decodings))

    # The first round has tried at least one candidate of the second.
    evaluate(first, len(_repetition_candidates(current, settings)) - 1)
    second = _repetition_candidates(choose(tried, current, settings).decoding, settings)
    if untried := [decoding for decoding in second if decoding not in first]:
        evaluate(untried, 0)
    chosen = choose(tried, current, settings)
    rest = sorted((each for each in tried if each is not chosen), key=lambda each: -each.scores[settings.by])
    captions = captioner.decoding.num_captions

    def with_captions(decoding: DecodingSettings) -> DecodingSettings:
        return dataclasses.replace(decoding, num_captions=min(captions, decoding.beam_size))

    return [each._replace(decoding=with_captions(each.decoding)) for each in (chosen, *rest)]


def choose(
    tried: Sequence[ScoredDecoding], current: DecodingSettings, settings: SearchSettings = SearchSettings()
) -> ScoredDecoding:
    """The best of `tried`, which must contain the `current` decoding, by the rules of `search_decoding`."""
    limits = next(each.scores for each in tried if each.decoding == current)
    accepted = [each for each in tried if all(each.scores[flaw] <= limits[flaw] for flaw in FLAWS)]
    best = max(each.scores[settings.by] for each in accepted)
    near = [each for each in accepted if each.scores[settings.by] >= best - settings.margin]

    def rank(each: ScoredDecoding) -> tuple[float, ...]:
        flaws = sum(each.scores[flaw] for flaw in FLAWS)
        return each.decoding.beam_size, flaws, each.decoding != current, -each.scores[settings.by]

    return min(near, key=rank)


def search_record(tried: Sequence[tuple[DecodingSettings, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """The record of a search in a checkpoint's provenance: each decoding with its scores, the chosen one first."""
    return [{"decoding": to_dict(decoding), "validation": dict(scores)} for decoding, scores in tried]


def save_decoding(folder: Path, tried: Sequence[ScoredDecoding]) -> None:
    """Make the chosen decoding the default of the checkpoint in `folder`, and record the search in its provenance.

    Replaces `config.json` atomically and changes no other file. Raises `CheckpointError`.
    """
    read_config(folder)
    path = folder / CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    values["decoding"] = to_dict(tried[0].decoding)
    values["provenance"] = {**values.get("provenance", {}), "decoding_search": search_record(tried)}
    temporary = path.with_name(f".{CONFIG}.new")
    try:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error}. Copy the checkpoint to a writable folder."
        ) from error


def _length_candidates(current: DecodingSettings, settings: SearchSettings) -> list[DecodingSettings]:
    """The current decoding, then every beam size with every length penalty."""
    candidates = [current]
    for beams in settings.beam_sizes:
        penalties = settings.length_penalties if beams > 1 else (current.length_penalty,)
        candidates += [dataclasses.replace(current, beam_size=beams, length_penalty=penalty) for penalty in penalties]
    return list(dict.fromkeys(candidates))


def _repetition_candidates(best: DecodingSettings, settings: SearchSettings) -> list[DecodingSettings]:
    """The best decoding so far with every repetition penalty and every `no_repeat_ngram_size`."""
    candidates = [
        dataclasses.replace(best, repetition_penalty=penalty, no_repeat_ngram_size=size)
        for penalty in settings.repetition_penalties
        for size in settings.no_repeat_ngram_sizes
    ]
    return list(dict.fromkeys(candidates))
