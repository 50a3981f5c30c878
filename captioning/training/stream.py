"""One epoch of a split's samples for one of several training workers: order, sharding and reading.

The samples of all shards, in the epoch's order of shards, form one sequence. Rank r of W reads positions
r·N/W to (r+1)·N/W of it, so slices differ by at most one sample, and each sample is seen once per epoch
whatever W is. The slices follow from the counts alone, before any tar is opened; a rank opens only the tars
that it needs. `epoch_order` is separate from reading, so that cached features come in the same order.
Images are not decoded here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from captioning.data.shards import Sample, ShardInfo, ShardSet, iterate_shard
from captioning.errors import InputError

#: Samples are shuffled within windows of at most this many samples and bytes.
WINDOW_SAMPLES = 2048
WINDOW_BYTES = 256 * 2**20


class SampleRef(NamedTuple):
    """A reference to a sample: its shard and its position in it."""

    shard: ShardInfo
    position: int


@dataclass(frozen=True)
class _ShardSlice:
    """The positions in one shard that a rank reads."""

    shard: ShardInfo
    positions: tuple[int, ...]


def slice_size(total: int, *, rank: int, world_size: int) -> int:
    """How many of `total` samples rank `rank` of `world_size` reads in an epoch."""
    return (rank + 1) * total // world_size - rank * total // world_size


def epoch_samples(
    shards: ShardSet, split: str, *, epoch: int, seed: int, rank: int, world_size: int, shuffle: bool, start: int = 0
) -> Iterator[Sample]:
    """The samples of `split` that rank `rank` of `world_size` reads in `epoch`, without the first `start`.

    They come in the order of `epoch_order`. Raises `InputError` for an unknown split or a shard with
    fewer samples than its counts file says.
    """
    infos = shards.split(split)
    place = {"rank": rank, "world_size": world_size, "start": start}
    for refs in epoch_order(infos, epoch=epoch, seed=seed, shuffle=shuffle, **place):
        yield from _read(shards, refs)


def epoch_order(
    infos: Sequence[ShardInfo], *, epoch: int, seed: int, rank: int, world_size: int, shuffle: bool, start: int = 0
) -> Iterator[list[SampleRef]]:
    """References to a rank's samples of an epoch in reading order, without the first `start`.

    The same arguments give the same order. With `shuffle`, (seed, epoch) permute the shards, the samples
    within each shard, and then the samples within windows of about 2,000 over several shards; each list is
    a window. Without it each list is a shard, in order.
    """
    if not 0 <= rank < world_size or start < 0:
        raise ValueError(f"rank {rank} of {world_size} workers, starting at {start}, is not possible")
    slices = _rank_slices(infos, epoch=epoch, seed=seed, rank=rank, world_size=world_size, shuffle=shuffle)
    for number, window in enumerate(_windows(slices) if shuffle else ([each] for each in slices)):
        refs = [SampleRef(each.shard, position) for each in window for position in each.positions]
        if start >= len(refs):
            start -= len(refs)
            continue
        if shuffle:
            order = _random(seed, epoch, 2, rank, world_size, number).permutation(len(refs))
            refs = [refs[at] for at in order]
        yield refs[start:]
        start = 0


def _rank_slices(
    infos: Sequence[ShardInfo], *, epoch: int, seed: int, rank: int, world_size: int, shuffle: bool
) -> list[_ShardSlice]:
    """The slices of shards that a rank reads: a contiguous range of the epoch's sequence of samples."""
    total = sum(info.samples for info in infos)
    first, last = rank * total // world_size, (rank + 1) * total // world_size
    order = _random(seed, epoch, 0).permutation(len(infos)) if shuffle else range(len(infos))
    slices = []
    begin = 0
    for number in order:
        info = infos[number]
        low, high = max(first - begin, 0), min(last - begin, info.samples)
        if low < high:
            # All ranks permute a shard in the same way, so that ranks that share one never read the same sample.
            within = _random(seed, epoch, 1, int(number)).permutation(info.samples) if shuffle else None
            positions = range(low, high) if within is None else within[low:high].tolist()
            slices.append(_ShardSlice(info, tuple(positions)))
        begin += info.samples
    return slices


def _windows(slices: Sequence[_ShardSlice]) -> Iterator[list[_ShardSlice]]:
    window: list[_ShardSlice] = []
    samples, size = 0, 0
    for each in slices:
        each_bytes = each.shard.bytes * len(each.positions) // each.shard.samples
        if window and (samples + len(each.positions) > WINDOW_SAMPLES or size + each_bytes > WINDOW_BYTES):
            yield window
            window, samples, size = [], 0, 0
        window.append(each)
        samples += len(each.positions)
        size += each_bytes
    if window:
        yield window


def _read(shards: ShardSet, refs: Sequence[SampleRef]) -> Iterator[Sample]:
    """The samples of `refs` in order. Each shard is opened once; samples that come early are buffered."""
    by_shard: dict[str, list[int]] = {}
    for ref in refs:
        by_shard.setdefault(ref.shard.name, []).append(ref.position)
    stream = (
        ((name, position), sample)
        for name, positions in by_shard.items()
        for position, sample in _read_positions(shards, name, sorted(positions))
    )
    buffer: dict[tuple[str, int], Sample] = {}
    for ref in refs:
        wanted = (ref.shard.name, ref.position)
        while wanted not in buffer:
            at, sample = next(stream)
            buffer[at] = sample
        yield buffer.pop(wanted)


def _read_positions(shards: ShardSet, name: str, positions: Sequence[int]) -> Iterator[tuple[int, Sample]]:
    """The samples at ascending `positions` of a shard, with their positions."""
    found = 0
    for sample in iterate_shard(shards.location, name, positions):
        if found < len(positions):
            yield positions[found], sample
        found += 1
    if found != len(positions):
        raise InputError(
            f"The shard {shards.location / name} has fewer samples than were written to it. "
            f"Delete the folder and prepare the dataset again."
        )


def _random(*numbers: int) -> np.random.Generator:
    # numpy refuses negative seeds.
    return np.random.default_rng(np.random.SeedSequence([number & 0xFFFF_FFFF_FFFF_FFFF for number in numbers]))
