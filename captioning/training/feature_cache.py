"""A cache of the features that the frozen part of an encoder (its stem) computes from the training images.

    ROOT/{key}/cache.json          the values that are hashed into the key, for people
    ROOT/{key}/NAME.stems, .json   the features of training shard NAME (see `feature_files`)

The key is a hash of everything that the features depend on, so one ROOT serves many runs safely. The features
are computed once and read in every epoch, in the order of `stream`.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioning.config import to_dict
from captioning.data.augment import Augment, choose_view
from captioning.data.preprocess import Preprocess
from captioning.data.shards import Sample, ShardInfo, ShardSet, iterate_shard
from captioning.errors import CaptioningError, ImageError, InputError, SettingsError
from captioning.models.base import CaptionModel
from captioning.storage import Location
from captioning.training.feature_files import FORMAT_VERSION, CachedSample, FeatureFile
from captioning.training.stream import SampleRef, epoch_order
from captioning.training.workers import Workers

__all__ = ["CachedSample", "FeatureCache"]

_KEY_FILE = "cache.json"
#: Images per batch. Few on a CPU, so that activations stay in its caches.
_CPU_BATCH, _GPU_BATCH = 8, 64
#: Bytes to prefetch of features in remote storage.
_READ_BYTES = 128 * 2**20


class FeatureCache:
    """The cached features of a set of training shards. Made with `build`."""

    def __init__(self, folder: Location, shards: ShardSet) -> None:
        self.folder = folder
        self._shards = shards
        self._files: dict[str, FeatureFile] = {}

    @staticmethod
    def build(
        root: Location,
        model: CaptionModel,
        preprocess: Preprocess,
        augment: Augment,
        shards: ShardSet,
        *,
        splits: Sequence[str] = ("train",),
        views: int = 1,
        precision: Literal["fp32", "bf16"] = "fp32",
        workers: Workers | None = None,
        log: Callable[[str], None] | None = None,
    ) -> "FeatureCache":
        """The cache below `root` of the outputs of `model.stem`, complete when this returns.

        Called by all workers together, who divide the missing shards among themselves. Images of `train` are
        cached in `views` views (or as many as can differ), others without augmentation. Raises `SettingsError`
        if nothing of the model is frozen or features exceed float16, `InputError` for an image that cannot be
        decoded.
        """
        workers = workers or Workers()
        identity = model.stem_identity()
        if identity is None:
            raise SettingsError(
                "There is nothing to cache: no part of the image encoder is frozen (or none that can be run on its "
                "own). Set feature_cache to null, or freeze the encoder."
            )
        views = augment.distinct(views)
        key_values = _key_values(identity, preprocess, augment, shards, views=views, precision=precision)
        cache = FeatureCache(root / _key(key_values), shards)
        pending = workers.broadcast(cache._pending(splits) if workers.rank == 0 else None)
        if pending and workers.rank == 0:
            (cache.folder / _KEY_FILE).write_text(json.dumps(key_values, indent=2) + "\n")
        extractor = _FeatureExtractor(model, preprocess, augment, precision, workers.device)
        total, done = sum(shard.samples for _, shard in pending), 0
        for first in range(0, len(pending), workers.world_size):
            group = pending[first : first + workers.world_size]
            failure: CaptioningError | None = None
            if workers.rank < len(group):
                split, shard = group[workers.rank]
                try:
                    extractor.extract(FeatureFile(cache.folder, shard), shards, shard, views if split == "train" else 1)
                except CaptioningError as error:
                    failure = error
            # Raise a failure in all workers, so that none waits for the one that failed.
            for each in workers.gather(failure):
                if each is not None:
                    raise each
            done += sum(shard.samples for _, shard in group)
            if log is not None and workers.rank == 0:
                log(f"features of {done:,} of {total:,} images cached in {cache.folder}")
        return cache

    def epoch_samples(
        self, split: str, *, epoch: int, seed: int, rank: int, world_size: int, shuffle: bool = True, start: int = 0
    ) -> Iterator[CachedSample]:
        """The samples of `stream.epoch_samples` in the same order, each with the features of one view.

        The view depends on (seed, epoch, key). Raises `InputError` for a file that is missing or damaged.
        """
        infos = self._shards.split(split)
        place = {"rank": rank, "world_size": world_size, "start": start}
        for refs in epoch_order(infos, epoch=epoch, seed=seed, shuffle=shuffle, **place):
            # Local files are memory-mapped and need no prefetching.
            size = 1 if self.folder.is_local else max(1, _READ_BYTES // self._file(refs[0].shard).stem_bytes)
            for at in range(0, len(refs), size):
                yield from self._read(refs[at : at + size], seed, epoch)

    def _read(self, refs: Sequence[SampleRef], seed: int, epoch: int) -> Iterator[CachedSample]:
        by_shard: dict[str, list[tuple[int, int]]] = {}
        for shard, position in refs:
            file = self._file(shard)
            view = choose_view(seed, epoch, file.key(position), file.views)
            by_shard.setdefault(shard.name, []).append((position, view))
        samples = {name: iter(self._files[name].read(wanted)) for name, wanted in by_shard.items()}
        for shard, _ in refs:
            yield next(samples[shard.name])

    def _file(self, shard: ShardInfo) -> FeatureFile:
        if shard.name not in self._files:
            self._files[shard.name] = FeatureFile(self.folder, shard)
        return self._files[shard.name]

    def _pending(self, splits: Sequence[str]) -> list[tuple[str, ShardInfo]]:
        """Shards that are not cached, with their splits."""
        existing = set(self.folder.names())
        wanted = [(split, shard) for split in splits for shard in self._shards.split(split) if shard.samples]
        return [(split, shard) for split, shard in wanted if not self._is_done(shard, existing)]

    def _is_done(self, shard: ShardInfo, existing: set[str]) -> bool:
        file = FeatureFile(self.folder, shard)
        return {file.index.name, file.stems.name} <= existing and file.is_complete()


class _FeatureExtractor:
    """Runs images through a model's stem."""

    def __init__(
        self, model: CaptionModel, preprocess: Preprocess, augment: Augment, precision: str, device: torch.device
    ) -> None:
        self._model = model
        self._preprocess = preprocess
        self._augment = augment
        self._autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        self._device = device

    def extract(self, file: FeatureFile, shards: ShardSet, shard: ShardInfo, views: int) -> None:
        """Compute and write the features of one shard."""
        samples = list(iterate_shard(shards.location, shard.name))
        if len(samples) != shard.samples:
            raise InputError(
                f"The shard {shards.location / shard.name} has {len(samples)} samples, not the {shard.samples} that "
                "were written to it. Delete the folder and prepare the dataset again."
            )
        buffer = io.BytesIO()
        shape: tuple[int, ...] = ()
        for group, pixels in self._decode(samples, views):
            stems = self._stems([sample.key for sample in group for _ in range(views)], pixels)
            shape = stems.shape[1:]
            buffer.write(stems.tobytes())
        file.write(samples, buffer.getvalue(), shape, views)

    def _decode(self, samples: Sequence[Sample], views: int) -> Iterator[tuple[Sequence[Sample], Tensor]]:
        """Batches of samples with the pixels of all their views. The next batch is decoded in threads meanwhile."""
        size = max(1, (_CPU_BATCH if self._device.type == "cpu" else _GPU_BATCH) // views)
        groups = [samples[at : at + size] for at in range(0, len(samples), size)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            futures: list[list[Future[NDArray[np.uint8]]]] = []
            for at, group in enumerate(groups):
                futures.extend(
                    [pool.submit(self._pixels, sample, view) for sample in ahead for view in range(views)]
                    for ahead in groups[len(futures) : at + 2]
                )
                yield group, torch.from_numpy(np.stack([future.result() for future in futures[at]]))
                futures[at] = []

    def _pixels(self, sample: Sample, number: int) -> NDArray[np.uint8]:
        view = self._augment.view(sample.key, sample.captions, number)
        try:
            return self._preprocess.from_bytes(sample.image, view).pixels
        except ImageError as error:
            raise InputError(f"The training image {sample.key!r} cannot be decoded: {error.message}") from error

    @torch.no_grad()
    def _stems(self, keys: Sequence[str], pixels: Tensor) -> NDArray[np.float16]:
        with self._autocast:
            stems = self._model.stem(pixels.to(self._device))
        half = stems.to(torch.float16)
        if not bool(half.isfinite().all()):
            key = keys[int((~half.isfinite()).flatten(1).any(1).nonzero()[0])]
            raise SettingsError(
                f"The features of the image {key!r} reach {float(stems.abs().max()):.3g}, more than half precision "
                "holds (65,504): they cannot be cached. Set feature_cache to null for this encoder."
            )
        return half.cpu().numpy().astype("<f2", copy=False)


def _key_values(
    identity: str, preprocess: Preprocess, augment: Augment, shards: ShardSet, *, views: int, precision: str
) -> dict[str, Any]:
    """All values that the features depend on."""
    # And nothing else: runs with different seeds share views that are not random.
    random = views > 1 and augment.crop < 1
    return {
        "format_version": FORMAT_VERSION,
        "encoder": identity,
        "precision": precision,
        "preprocess": to_dict(preprocess.settings),
        "dataset": shards.identity,
        "views": views,
        "flip": augment.flip if views > 1 else None,
        "crop": augment.crop if random else None,
        "seed": augment.seed if random else None,
    }


def _key(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
