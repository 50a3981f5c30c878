"""Where a stage's samples come from: images of training shards, kept features of them, or captions alone.

A source knows its size and gives each share of an epoch, from any place in it on. It knows nothing of
objectives, steps, batches, or of who works on which share.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from captioning.data.shards import ShardSet, iterate_shard
from captioning.data.texts import read_captions
from captioning.errors import InputError
from captioning.storage import Location
from captioning.training.batches import Batch, BatchMaker
from captioning.training.feature_cache import FeatureCache
from captioning.training.stream import epoch_samples, share_size


class Source(ABC):
    """Samples that are seen once an epoch, in an order that (seed, epoch) decide."""

    #: Samples of an epoch, over all workers.
    size: int

    @abstractmethod
    def epoch(self, epoch: int, share: int, *, of: int, start: int) -> Iterator[Any]:
        """The samples of share number `share` (from 0) of `of` of `epoch`, after the first `start` of them."""

    @abstractmethod
    def batch(self, batches: BatchMaker, samples: Sequence[Any], epoch: int) -> Batch:
        """A batch of samples that `epoch` gave."""

    @staticmethod
    def steps(size: int, per_share: int, shares: int) -> int:
        """Steps of an epoch of `size` samples, in which `per_share` at most are taken of every share."""
        longest = max(share_size(size, rank=share, world=shares) for share in range(shares))
        return -(-longest // per_share)


class ImageSource(Source):
    """The train split's images, decoded in every epoch."""

    def __init__(self, shards: ShardSet, *, seed: int) -> None:
        self._shards = shards
        self._seed = seed
        self.size = shards.counts["train"]

    def epoch(self, epoch: int, share: int, *, of: int, start: int) -> Iterator[Any]:
        """Samples with the bytes of their images."""
        return epoch_samples(
            self._shards, "train", epoch=epoch, seed=self._seed, rank=share, world=of, shuffle=True, start=start
        )

    def batch(self, batches: BatchMaker, samples: Sequence[Any], epoch: int) -> Batch:
        """Images and captions."""
        return batches.make(samples, epoch)


class FeatureSource(ImageSource):
    """The train split's images as the frozen part of an encoder left them, read from a cache."""

    def __init__(self, shards: ShardSet, cache: FeatureCache, *, seed: int) -> None:
        super().__init__(shards, seed=seed)
        self._cache = cache

    def epoch(self, epoch: int, share: int, *, of: int, start: int) -> Iterator[Any]:
        """Samples with what the cache holds of one of their views, in the order of the images."""
        return self._cache.epoch_samples("train", epoch=epoch, seed=self._seed, rank=share, world=of, start=start)


class TextSource(Source):
    """Captions alone."""

    def __init__(self, captions: Sequence[str], *, seed: int) -> None:
        self._captions = captions
        self._seed = seed
        self.size = len(captions)

    def epoch(self, epoch: int, share: int, *, of: int, start: int) -> Iterator[Any]:
        """The share's stretch of the epoch's permutation."""
        order = np.random.default_rng([self._seed & 0xFFFF_FFFF, epoch]).permutation(self.size)
        first, last = (place * self.size // of for place in (share, share + 1))
        return (self._captions[at] for at in order[first:last][start:])

    def batch(self, batches: BatchMaker, samples: Sequence[Any], epoch: int) -> Batch:  # noqa: ARG002
        """Captions without images."""
        return batches.make_of_text(samples)


def train_captions(shards: ShardSet, text: str | None) -> list[str]:
    """The captions of the file `text`, or of the train split. Raises `InputError`."""
    if text is not None:
        captions = read_captions(Location.parse(text, shards.location.settings))
        if not captions:
            raise InputError(f"text: there is no caption in {text}.")
        return captions
    return list(captions_of(shards))


def captions_of(shards: ShardSet) -> Iterator[str]:
    """The captions of the train split, in the order of the shards."""
    for shard in shards.split("train"):
        for sample in iterate_shard(shards.location, shard.name):
            yield from sample.captions
