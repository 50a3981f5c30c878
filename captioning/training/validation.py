"""Captions a split over all workers and scores the captions. Each image is captioned once, whatever the workers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from captioning.captioner import Caption, Captioner
from captioning.data.shards import Sample, ShardSet
from captioning.decoding.settings import DecodingSettings
from captioning.metrics.score import Scores, score_captions
from captioning.training.batches import batched, decode_sample, prefetch
from captioning.training.stream import epoch_samples
from captioning.training.workers import Workers


@dataclass(frozen=True)
class CaptionedSample:
    """An image's key, the dataset's id of it, its reference captions, and the generated caption."""

    key: str
    image_id: str
    references: tuple[str, ...]
    caption: Caption


def caption_split(
    captioner: Captioner,
    shards: ShardSet,
    split: str,
    *,
    workers: Workers | None = None,
    images: int | None = None,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> list[CaptionedSample]:
    """Caption `split` (its first `images`, or all). Every worker captions a slice and gets all results.

    `on_progress` is called after each batch with the number of images that this worker has captioned.
    """
    return caption_split_each(
        captioner,
        shards,
        split,
        [captioner.decoding],
        workers=workers,
        images=images,
        batch_size=batch_size,
        on_progress=on_progress,
    )[0]


def caption_split_each(
    captioner: Captioner,
    shards: ShardSet,
    split: str,
    decodings: Sequence[DecodingSettings],
    *,
    workers: Workers | None = None,
    images: int | None = None,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> list[list[CaptionedSample]]:
    """As `caption_split` with each of `decodings`, in order; each image is encoded once for all of them.

    `on_progress` is called after each batch and decoding with the number of captions of this worker.
    """
    workers = workers or Workers()
    own: list[list[CaptionedSample]] = [[] for _ in decodings]
    done = 0
    for samples in prefetch(lambda: batched(_own_slice(shards, split, workers, images), batch_size)):
        pixels = np.stack([decode_sample(sample, captioner.preprocess) for sample in samples])
        features = captioner.encode(pixels)
        for captioned, settings in zip(own, decodings, strict=True):
            captions = captioner.caption_features(features, settings)
            captioned += [
                CaptionedSample(sample.key, sample.image_id, sample.captions, caption)
                for sample, caption in zip(samples, captions, strict=True)
            ]
            done += len(samples)
            if on_progress:
                on_progress(done)
    gathered = workers.gather(own)
    return [[sample for theirs in gathered for sample in theirs[at]] for at in range(len(decodings))]


def score_samples(captioned: Sequence[CaptionedSample], *, meteor: bool = False) -> Scores:
    """The metrics of generated captions against their references."""
    return score_captions(
        {sample.key: sample.caption.text for sample in captioned},
        {sample.key: sample.references for sample in captioned},
        meteor=meteor,
        unended={sample.key for sample in captioned if not sample.caption.ended},
        unknown={sample.key for sample in captioned if sample.caption.unknown},
    )


def _own_slice(shards: ShardSet, split: str, workers: Workers, images: int | None) -> Iterator[Sample]:
    if images is None:
        yield from epoch_samples(
            shards, split, epoch=0, seed=0, rank=workers.rank, world_size=workers.world_size, shuffle=False
        )
        return
    # A few images: every worker reads from the start and takes every `world_size`-th.
    all_samples = epoch_samples(shards, split, epoch=0, seed=0, rank=0, world_size=1, shuffle=False)
    for at, sample in zip(range(images), all_samples, strict=False):
        if at % workers.world_size == workers.rank:
            yield sample
