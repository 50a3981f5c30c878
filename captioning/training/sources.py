"""Where a stage's samples come from: images of training shards, their cached features, or captions alone.

A source divides an epoch into equal slices and can start anywhere in a slice.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from captioning.data.shards import ShardSet, iterate_shard
from captioning.data.texts import read_captions
from captioning.errors import InputError
from captioning.storage import Location
from captioning.training.batches import Batch, Collator
from captioning.training.feature_cache import FeatureCache
from captioning.training.stream import epoch_samples, slice_size


class Source(ABC):
    """Samples that are seen once per epoch, in an order that depends on (seed, epoch)."""

    #: Samples in an epoch, over all workers.
    size: int

    @abstractmethod
    def epoch(self, epoch: int, index: int, *, num_slices: int, start: int) -> Iterator[Any]:
        """The samples of slice `index` of `num_slices` of `epoch`, without the first `start`."""

    @abstractmethod
    def batch(self, collator: Collator, samples: Sequence[Any], epoch: int) -> Batch:
        """A batch of samples that `epoch` returned."""

    @staticmethod
    def steps(size: int, per_slice: int, num_slices: int) -> int:
        """Steps in an epoch of `size` samples, with at most `per_slice` samples of each slice in a step."""
        longest = max(slice_size(size, rank=index, world_size=num_slices) for index in range(num_slices))
        return -(-longest // per_slice)


class ImageSource(Source):
    """The images of the train split, decoded in every epoch."""

    def __init__(self, shards: ShardSet, *, seed: int) -> None:
        self._shards = shards
        self._seed = seed
        self.size = shards.counts["train"]

    def epoch(self, epoch: int, index: int, *, num_slices: int, start: int) -> Iterator[Any]:
        """Samples with the bytes of their images."""
        place = {"rank": index, "world_size": num_slices, "start": start}
        return epoch_samples(self._shards, "train", epoch=epoch, seed=self._seed, shuffle=True, **place)

    def batch(self, collator: Collator, samples: Sequence[Any], epoch: int) -> Batch:
        """Images and captions."""
        return collator.collate(samples, epoch)


class FeatureSource(ImageSource):
    """The images of the train split as cached features."""

    def __init__(self, shards: ShardSet, cache: FeatureCache, *, seed: int) -> None:
        super().__init__(shards, seed=seed)
        self._cache = cache

    def epoch(self, epoch: int, index: int, *, num_slices: int, start: int) -> Iterator[Any]:
        """Samples with the cached features of one of their views, in the order of `ImageSource`."""
        return self._cache.epoch_samples(
            "train", epoch=epoch, seed=self._seed, rank=index, world_size=num_slices, start=start
        )


class TextSource(Source):
    """Captions alone."""

    def __init__(self, captions: Sequence[str], *, seed: int) -> None:
        self._captions = captions
        self._seed = seed
        self.size = len(captions)

    def epoch(self, epoch: int, index: int, *, num_slices: int, start: int) -> Iterator[Any]:
        """A slice of the epoch's permutation."""
        order = np.random.default_rng([self._seed & 0xFFFF_FFFF, epoch]).permutation(self.size)
        first, last = (bound * self.size // num_slices for bound in (index, index + 1))
        return (self._captions[at] for at in order[first:last][start:])

    def batch(self, collator: Collator, samples: Sequence[Any], epoch: int) -> Batch:  # noqa: ARG002
        """Captions without images."""
        return collator.collate_text(samples)


def train_captions(shards: ShardSet, text: str | None) -> list[str]:
    """The captions of the file `text`, or of the train split if it is None. Raises `InputError`."""
    if text is not None:
        captions = read_captions(Location.parse(text, shards.location.settings))
        if not captions:
            raise InputError(f"text: {text} contains no captions.")
        return captions
    return list(captions_of(shards))


def captions_of(shards: ShardSet) -> Iterator[str]:
    """The captions of the train split, in the order of the shards."""
    for shard in shards.split("train"):
        for sample in iterate_shard(shards.location, shard.name):
            yield from sample.captions
