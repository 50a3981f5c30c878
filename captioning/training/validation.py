"""Captions for a split, generated over all workers and scored: each image once, whatever their number."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from captioning.captioner import Caption, Captioner
from captioning.data.shards import Sample, ShardSet
from captioning.decoding.search import Hypothesis, decode
from captioning.decoding.settings import DecodingSettings
from captioning.metrics.score import Scores, score_captions
from captioning.training.batches import decode_sample, grouped, read_ahead
from captioning.training.stream import epoch_samples
from captioning.training.workers import Workers


@dataclass(frozen=True)
class Described:
    """An image's key, its references, and what the captioner said."""

    key: str
    references: tuple[str, ...]
    caption: Caption
    ended: bool = True
    """Whether the caption came to its end token; if not, it was cut at `max_new_tokens`."""
    unknown: bool = False
    """Whether the caption holds a token that stands for no word."""


def describe(
    captioner: Captioner,
    shards: ShardSet,
    split: str,
    *,
    workers: Workers | None = None,
    images: int | None = None,
    batch_size: int = 32,
    tell: Callable[[int], None] | None = None,
) -> list[Described]:
    """Caption `split` (its first `images`, or all): every worker a share, all results in every worker.

    `tell` hears after each batch how many images this worker has done.
    """
    decodings = [captioner.decoding]
    return describe_each(
        captioner, shards, split, decodings, workers=workers, images=images, batch_size=batch_size, tell=tell
    )[0]


def describe_each(
    captioner: Captioner,
    shards: ShardSet,
    split: str,
    decodings: Sequence[DecodingSettings],
    *,
    workers: Workers | None = None,
    images: int | None = None,
    batch_size: int = 32,
    tell: Callable[[int], None] | None = None,
) -> list[list[Described]]:
    """As `describe`, with each of `decodings` in their order; an image is encoded once for all of them.

    `tell` hears after each batch and decoding how many captions this worker has made.
    """
    workers = workers or Workers()
    own: list[list[Described]] = [[] for _ in decodings]
    done = 0
    for samples in read_ahead(lambda: grouped(_share(shards, split, workers, images), batch_size)):
        pixels = np.stack([decode_sample(sample, captioner.preprocess) for sample in samples])
        features = _encode(captioner, pixels)
        for described, settings in zip(own, decodings, strict=True):
            described += _say(captioner, samples, features, settings)
            done += len(samples)
            if tell:
                tell(done)
    shares = workers.gather(own)
    return [[described for share in shares for described in share[at]] for at in range(len(decodings))]


def score(described: Sequence[Described], *, meteor: bool = False) -> Scores:
    """The metrics of generated captions against their references."""
    return score_captions(
        {d.key: d.caption.text for d in described},
        {d.key: d.references for d in described},
        meteor=meteor,
        unended={d.key for d in described if not d.ended},
        unknown={d.key for d in described if d.unknown},
    )


@torch.inference_mode()
def _encode(captioner: Captioner, pixels: np.ndarray[Any, Any]) -> Any:
    with _autocast(captioner):
        return captioner.model.encode(torch.from_numpy(pixels).to(captioner.model.device))


@torch.inference_mode()
def _say(captioner: Captioner, samples: Sequence[Sample], features: Any, settings: DecodingSettings) -> list[Described]:
    """What the captioner says of the images of `features`, and how it came to its end."""
    model, tokenizer = captioner.model, captioner.tokenizer
    prompt = tokenizer.encode(settings.prompt) if settings.prompt else []
    with _autocast(captioner):
        stepper = model.stepper(features, prompt)
        found = decode(stepper, settings, eos_id=tokenizer.eos_id, banned=tokenizer.banned_ids)
    banned = frozenset(tokenizer.banned_ids)

    def described(sample: Sample, hypotheses: list[Hypothesis]) -> Described:
        best = hypotheses[0]
        texts = tuple((tokenizer.decode([*prompt, *each.tokens]), each.score) for each in hypotheses)
        caption = Caption(texts[0][0], best.score, best.num_tokens, texts)
        # The end token is counted, and is not among the tokens.
        ended = len(best.tokens) < best.num_tokens
        return Described(sample.key, sample.captions, caption, ended, not banned.isdisjoint(best.tokens))

    return [described(*pair) for pair in zip(samples, found, strict=True)]


def _autocast(captioner: Captioner) -> torch.autocast:
    return torch.autocast(captioner.model.device.type, dtype=torch.bfloat16, enabled=captioner.precision == "bf16")


def _share(shards: ShardSet, split: str, workers: Workers, images: int | None) -> Iterator[Sample]:
    if images is None:
        yield from epoch_samples(shards, split, epoch=0, seed=0, rank=workers.rank, world=workers.world, shuffle=False)
        return
    # A few images: everybody reads from the start and takes every world-th.
    every = epoch_samples(shards, split, epoch=0, seed=0, rank=0, world=1, shuffle=False)
    for at, sample in zip(range(images), every, strict=False):
        if at % workers.world == workers.rank:
            yield sample
