"""Which decoding suits a captioner: a few settings tried on a validation split, the best kept as its default.

Knows captioners and scores, not how the captioner was trained. One round tries beam sizes with
length penalties, the next, with the best of these, the settings against stutter: not the whole
grid, most of which is as good as the rest. The split must not be the one that results are told of.
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
from captioning.training.validation import describe_each, score
from captioning.training.workers import Workers

__all__ = ["FLAWS", "SearchSettings", "Tried", "choose", "keep_decoding", "search_decoding", "search_record"]

#: What a decoding may not have more of than the present one, however well it scores.
FLAWS = ("repetitions", "truncated", "unknown")

#: Hears, now and then, how many captions this worker has made and how many will have been made by all rounds.
Tell = Callable[[int, int], None]


class Tried(NamedTuple):
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
    tell: Tell | None = None,
) -> list[Tried]:
    """Every decoding tried on `split` with its scores: the chosen one first, then by score.

    Chosen is the highest CIDEr-D, or, within `margin` of it, the fewest beams, then the fewest flaws, then
    the present decoding: on a few hundred images a point is chance. Never a decoding whose captions
    repeat themselves, break off or hold unknown words more often than those of the captioner's present
    one. All workers caption and score a share, and all get the same list.
    """
    workers = workers or Workers()
    present = dataclasses.replace(captioner.decoding, num_captions=1)
    images = min(settings.images or shards.counts[split], shards.counts[split])
    first = _by_length(present, settings)
    tried: list[Tried] = []

    def attempt(decodings: Sequence[DecodingSettings], still_to_come: int) -> None:
        before = len(tried)

        def heard(done: int) -> None:
            if tell is not None:
                tell(before * images + done * workers.world, (before + len(decodings) + still_to_come) * images)

        described = describe_each(
            captioner,
            shards,
            split,
            decodings,
            workers=workers,
            images=settings.images,
            batch_size=batch_size,
            tell=heard,
        )
        mine = {at: score(described[at]).summary() for at in range(workers.rank, len(decodings), workers.world)}
        scores = {at: summary for share in workers.gather(mine) for at, summary in share.items()}
        tried.extend(Tried(decoding, scores[at]) for at, decoding in enumerate(decodings))

    # Of the second round's grid at least the present pair of settings is behind us.
    attempt(first, len(_by_repetition(present, settings)) - 1)
    second = _by_repetition(choose(tried, present, settings).decoding, settings)
    if unknown := [decoding for decoding in second if decoding not in first]:
        attempt(unknown, 0)
    chosen = choose(tried, present, settings)
    rest = sorted((each for each in tried if each is not chosen), key=lambda each: -each.scores[settings.by])
    captions = captioner.decoding.num_captions
    return [
        Tried(dataclasses.replace(each.decoding, num_captions=min(captions, each.decoding.beam_size)), each.scores)
        for each in (chosen, *rest)
    ]


def choose(tried: Sequence[Tried], present: DecodingSettings, settings: SearchSettings = SearchSettings()) -> Tried:
    """The best of `tried`, among which is the `present` decoding, by the rules of `search_decoding`."""
    bounds = next(each.scores for each in tried if each.decoding == present)
    sound = [each for each in tried if all(each.scores[flaw] <= bounds[flaw] for flaw in FLAWS)]
    best = max(each.scores[settings.by] for each in sound)
    near = [each for each in sound if each.scores[settings.by] >= best - settings.margin]

    def rank(each: Tried) -> tuple[float, ...]:
        flaws = sum(each.scores[flaw] for flaw in FLAWS)
        return each.decoding.beam_size, flaws, each.decoding != present, -each.scores[settings.by]

    return min(near, key=rank)


def search_record(tried: Sequence[tuple[DecodingSettings, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """What a checkpoint's provenance says of a search: each decoding with its scores, the chosen first."""
    return [{"decoding": to_dict(decoding), "validation": dict(scores)} for decoding, scores in tried]


def keep_decoding(folder: Path, tried: Sequence[Tried]) -> None:
    """Make the chosen decoding the default of the checkpoint in `folder`, and note the search in its provenance.

    Weights, words and card stay as they are; `config.json` is replaced in one step. Raises `CheckpointError`.
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
        raise CheckpointError(f"{path} cannot be written: {error}. Copy the checkpoint to where it can.") from error


def _by_length(present: DecodingSettings, settings: SearchSettings) -> list[DecodingSettings]:
    """The present decoding, then every beam size with every length penalty."""
    candidates = [present]
    for beams in settings.beam_sizes:
        penalties = settings.length_penalties if beams > 1 else (present.length_penalty,)
        candidates += [dataclasses.replace(present, beam_size=beams, length_penalty=penalty) for penalty in penalties]
    return list(dict.fromkeys(candidates))


def _by_repetition(best: DecodingSettings, settings: SearchSettings) -> list[DecodingSettings]:
    """The best decoding so far with every repetition penalty and every size of n-gram not to repeat."""
    candidates = [
        dataclasses.replace(best, repetition_penalty=penalty, no_repeat_ngram_size=size)
        for penalty in settings.repetition_penalties
        for size in settings.no_repeat_ngram_sizes
    ]
    return list(dict.fromkeys(candidates))
