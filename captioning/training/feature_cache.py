"""What a frozen (part of an) encoder makes of the training images, computed once and read in every epoch.

    ROOT/{key}/cache.json          what the key stands for, for people
    ROOT/{key}/NAME.stems, .json   the features of training shard NAME (see `feature_files`)

The key is a hash of all that the features rest on, so that one ROOT serves many trainings and none
reads another's. An epoch has the order of `stream`. Knows nothing of what learns from the features.
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
from captioning.data.augment import Augment, choose
from captioning.data.preprocess import Preprocess
from captioning.data.shards import Sample, ShardInfo, ShardSet, iterate_shard
from captioning.errors import CaptioningError, ImageError, InputError, SettingsError
from captioning.models.base import CaptionModel
from captioning.storage import Location
from captioning.training.feature_files import FORMAT_VERSION, CachedSample, FeatureFile
from captioning.training.stream import Place, epoch_places
from captioning.training.workers import Workers

__all__ = ["CachedSample", "FeatureCache"]

ABOUT = "cache.json"
#: Images through the encoder at once. On a CPU few: what lies between two layers then stays in its caches.
_CPU_BATCH, _GPU_BATCH = 8, 64
#: Of features that are not on this machine, so many bytes are read ahead.
_READ_BYTES = 128 * 2**20


class FeatureCache:
    """The features of a set of training shards. Made with `build`."""

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
        tell: Callable[[str], None] | None = None,
    ) -> "FeatureCache":
        """The cache below `root` of what `model.stem` makes of the images, complete when this returns.

        Called by all workers at once; they share the training shards that are not done. Images of
        `train` are kept in `views` views (as many of them as can differ), others plain. Raises
        `SettingsError` for a model with nothing frozen or numbers too large to keep, `InputError`
        for an image that cannot be decoded.
        """
        workers = workers or Workers()
        identity = model.stem_identity()
        if identity is None:
            raise SettingsError(
                "There is nothing to keep in a feature cache: no part of the image encoder is frozen (or no part that "
                "can be run by itself). Set feature_cache to null, or freeze the encoder."
            )
        views = augment.distinct(views)
        about = _describe(identity, preprocess, augment, shards, views=views, precision=precision)
        cache = FeatureCache(root / _key(about), shards)
        pending = workers.broadcast(cache._pending(splits) if workers.rank == 0 else None)
        if pending and workers.rank == 0:
            (cache.folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        maker = _Maker(model, preprocess, augment, precision, workers.device)
        total, done = sum(shard.samples for _, shard in pending), 0
        for first in range(0, len(pending), workers.world):
            together = pending[first : first + workers.world]
            failure: CaptioningError | None = None
            if workers.rank < len(together):
                split, shard = together[workers.rank]
                try:
                    maker.make(FeatureFile(cache.folder, shard), shards, shard, views if split == "train" else 1)
                except CaptioningError as error:
                    failure = error
            # All hear of a failure: nobody waits for one that has stopped.
            for found in workers.gather(failure):
                if found is not None:
                    raise found
            done += sum(shard.samples for _, shard in together)
            if tell is not None and workers.rank == 0:
                tell(f"features of {done:,} of {total:,} images kept in {cache.folder}")
        return cache

    def epoch_samples(
        self, split: str, *, epoch: int, seed: int, rank: int, world: int, shuffle: bool = True, start: int = 0
    ) -> Iterator[CachedSample]:
        """As `stream.epoch_samples`, the same samples in the same order, each with the features of one view.

        (seed, epoch, key) decide which view. Raises `InputError` for a file that is missing or damaged.
        """
        infos = self._shards.split(split)
        for places in epoch_places(infos, epoch=epoch, seed=seed, rank=rank, world=world, shuffle=shuffle, start=start):
            # Local files are mapped: nothing is gained by looking ahead.
            many = 1 if self.folder.is_local else max(1, _READ_BYTES // self._file(places[0].shard).stem_bytes)
            for at in range(0, len(places), many):
                yield from self._read(places[at : at + many], seed, epoch)

    def _read(self, places: Sequence[Place], seed: int, epoch: int) -> Iterator[CachedSample]:
        wanted: dict[str, list[tuple[int, int]]] = {}
        for shard, position in places:
            file = self._file(shard)
            view = choose(seed, epoch, file.key(position), file.views)
            wanted.setdefault(shard.name, []).append((position, view))
        found = {name: iter(self._files[name].read(asked)) for name, asked in wanted.items()}
        for shard, _ in places:
            yield next(found[shard.name])

    def _file(self, shard: ShardInfo) -> FeatureFile:
        if shard.name not in self._files:
            self._files[shard.name] = FeatureFile(self.folder, shard)
        return self._files[shard.name]

    def _pending(self, splits: Sequence[str]) -> list[tuple[str, ShardInfo]]:
        """Shards that are not done, with their splits."""
        there = set(self.folder.names())
        asked = [(split, shard) for split in splits for shard in self._shards.split(split) if shard.samples]
        return [(split, shard) for split, shard in asked if not self._is_done(shard, there)]

    def _is_done(self, shard: ShardInfo, there: set[str]) -> bool:
        file = FeatureFile(self.folder, shard)
        return {file.index.name, file.stems.name} <= there and file.is_complete()


class _Maker:
    """Runs images through a model's stem."""

    def __init__(
        self, model: CaptionModel, preprocess: Preprocess, augment: Augment, precision: str, device: torch.device
    ) -> None:
        self._model = model
        self._preprocess = preprocess
        self._augment = augment
        self._autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        self._device = device

    def make(self, file: FeatureFile, shards: ShardSet, shard: ShardInfo, views: int) -> None:
        """Compute and write the features of one shard."""
        samples = list(iterate_shard(shards.location, shard.name))
        if len(samples) != shard.samples:
            raise InputError(
                f"The shard {shards.location / shard.name} has {len(samples)} samples, not the {shard.samples} that "
                "were written to it. Delete the folder and prepare the dataset again."
            )
        buffer = io.BytesIO()
        shape: tuple[int, ...] = ()
        for group, pixels in self._decoded(samples, views):
            stems = self._stems([sample.key for sample in group for _ in range(views)], pixels)
            shape = stems.shape[1:]
            buffer.write(stems.tobytes())
        file.write(samples, buffer.getvalue(), shape, views)

    def _decoded(self, samples: Sequence[Sample], views: int) -> Iterator[tuple[Sequence[Sample], Tensor]]:
        """Batches of samples and the pixels of all their views, decoded while the batch before is computed."""
        size = max(1, (_CPU_BATCH if self._device.type == "cpu" else _GPU_BATCH) // views)
        groups = [samples[at : at + size] for at in range(0, len(samples), size)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            waiting: list[list[Future[NDArray[np.uint8]]]] = []
            for at, group in enumerate(groups):
                waiting.extend(
                    [pool.submit(self._pixels, sample, view) for sample in coming for view in range(views)]
                    for coming in groups[len(waiting) : at + 2]
                )
                yield group, torch.from_numpy(np.stack([future.result() for future in waiting[at]]))
                waiting[at] = []

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
            broken = keys[int((~half.isfinite()).flatten(1).any(1).nonzero()[0])]
            raise SettingsError(
                f"The features of the image {broken!r} reach {float(stems.abs().max()):.3g}, more than half precision "
                "holds (65,504): they cannot be kept. Set feature_cache to null for this encoder."
            )
        return half.cpu().numpy().astype("<f2", copy=False)


def _describe(
    identity: str, preprocess: Preprocess, augment: Augment, shards: ShardSet, *, views: int, precision: str
) -> dict[str, Any]:
    """All that the features rest on."""
    # Nothing that does not change the features may change the key: trials of many seeds share the plain views.
    drawn = views > 1 and augment.crop < 1
    return {
        "format_version": FORMAT_VERSION,
        "encoder": identity,
        "precision": precision,
        "preprocess": to_dict(preprocess.settings),
        "dataset": shards.identity,
        "views": views,
        "flip": augment.flip if views > 1 else None,
        "crop": augment.crop if drawn else None,
        "seed": augment.seed if drawn else None,
    }


def _key(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
