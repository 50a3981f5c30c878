"""Captions for a split, generated over all workers and scored: each image once, whatever their number."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from captioning.captioner import Caption, Captioner
from captioning.data.shards import Sample, ShardSet
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
    workers = workers or Workers()
    own: list[Described] = []
    for samples in read_ahead(lambda: grouped(_share(shards, split, workers, images), batch_size)):
        pixels = np.stack([decode_sample(sample, captioner.preprocess) for sample in samples])
        captions = captioner.caption_pixels(pixels, batch_size=batch_size)
        own += [Described(s.key, s.captions, c) for s, c in zip(samples, captions, strict=True)]
        if tell:
            tell(len(own))
    return [described for share in workers.gather(own) for described in share]


def score(described: list[Described], *, meteor: bool = False) -> Scores:
    """The metrics of generated captions against their references."""
    return score_captions(
        {d.key: d.caption.text for d in described}, {d.key: d.references for d in described}, meteor=meteor
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
