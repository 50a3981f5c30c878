"""Captions for a split, generated over all workers and scored: each image once, whatever their number."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from captioning.captioner import Caption, Captioner
from captioning.data.shards import Sample, ShardSet
from captioning.decoding.settings import DecodingSettings
from captioning.metrics.score import Scores, score_captions
from captioning.training.batches import decode_sample, grouped, read_ahead
from captioning.training.stream import epoch_samples
from captioning.training.workers import Workers


@dataclass(frozen=True)
class Described:
    """An image's key and the dataset's own id of it, its references, and what the captioner said."""

    key: str
    image_id: str
    references: tuple[str, ...]
    caption: Caption


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
        features = captioner.encode(pixels)
        for described, settings in zip(own, decodings, strict=True):
            captions = captioner.caption_features(features, settings)
            described += [
                Described(sample.key, sample.image_id, sample.captions, caption)
                for sample, caption in zip(samples, captions, strict=True)
            ]
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
        unended={d.key for d in described if not d.caption.ended},
        unknown={d.key for d in described if d.caption.unknown},
    )


def _share(shards: ShardSet, split: str, workers: Workers, images: int | None) -> Iterator[Sample]:
    if images is None:
        yield from epoch_samples(shards, split, epoch=0, seed=0, rank=workers.rank, world=workers.world, shuffle=False)
        return
    # A few images: everybody reads from the start and takes every world-th.
    every = epoch_samples(shards, split, epoch=0, seed=0, rank=0, world=1, shuffle=False)
    for at, sample in zip(range(images), every, strict=False):
        if at % workers.world == workers.rank:
            yield sample
