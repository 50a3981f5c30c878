"""One epoch of a split's samples, for one of several training workers.

The samples of all shards, in the epoch's order of shards, form one sequence; rank r of W has the
places from r·N/W to (r+1)·N/W of it, so that the ranks' shares differ by one sample at most and
each sample is seen once an epoch, whatever W is. Who reads what is known from the counts alone,
before a tar is opened; a rank opens only the tars that it needs. The order is told apart from the
reading, so that what is kept of the samples elsewhere is seen in the same order. This module
decodes no image and knows nothing of batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from captioning.data.shards import Sample, ShardInfo, ShardSet, iterate_shard
from captioning.errors import InputError

#: Samples are shuffled together within a window of whole pieces of shards: this many samples, or bytes if fewer.
WINDOW_SAMPLES = 2048
WINDOW_BYTES = 256 * 2**20


class Place(NamedTuple):
    """Where a sample is: its shard and its position in it."""

    shard: ShardInfo
    position: int


@dataclass(frozen=True)
class _Piece:
    """Positions in one shard that belong to a rank."""

    shard: ShardInfo
    positions: tuple[int, ...]


def share_size(total: int, *, rank: int, world: int) -> int:
    """How many of `total` samples rank `rank` of `world` sees in an epoch."""
    return (rank + 1) * total // world - rank * total // world


def epoch_samples(
    shards: ShardSet, split: str, *, epoch: int, seed: int, rank: int, world: int, shuffle: bool, start: int = 0
) -> Iterator[Sample]:
    """The samples of `split` that rank `rank` of `world` sees in `epoch`, after the first `start` of them.

    They come in the order of `epoch_places`. Raises `InputError` for an unknown split or a shard that
    has not the samples its set counted.
    """
    infos = shards.split(split)
    for places in epoch_places(infos, epoch=epoch, seed=seed, rank=rank, world=world, shuffle=shuffle, start=start):
        yield from _read(shards, places)


def epoch_places(
    infos: Sequence[ShardInfo], *, epoch: int, seed: int, rank: int, world: int, shuffle: bool, start: int = 0
) -> Iterator[list[Place]]:
    """Where the samples of an epoch are, in the order in which a rank sees them, after the first `start`.

    The same arguments give the same order. With `shuffle` the order of shards changes by
    (seed, epoch), and samples are permuted within each shard and then within windows of some 2,000
    samples over several shards: a window is one list. Without it they come in the order of the
    shards, a list a shard.
    """
    if not 0 <= rank < world or start < 0:
        raise ValueError(f"rank {rank} of {world} workers, starting at {start}, makes no sense")
    pieces = _share(infos, epoch=epoch, seed=seed, rank=rank, world=world, shuffle=shuffle)
    for number, window in enumerate(_windows(pieces) if shuffle else ([piece] for piece in pieces)):
        places = [Place(piece.shard, position) for piece in window for position in piece.positions]
        if start >= len(places):
            start -= len(places)
            continue
        if shuffle:
            order = _random(seed, epoch, 2, rank, world, number).permutation(len(places))
            places = [places[place] for place in order]
        yield places[start:]
        start = 0


def _share(infos: Sequence[ShardInfo], *, epoch: int, seed: int, rank: int, world: int, shuffle: bool) -> list[_Piece]:
    """The pieces of shards that belong to a rank: a stretch of the epoch's sequence of samples."""
    total = sum(info.samples for info in infos)
    first, last = rank * total // world, (rank + 1) * total // world
    order = _random(seed, epoch, 0).permutation(len(infos)) if shuffle else range(len(infos))
    pieces = []
    begin = 0
    for number in order:
        info = infos[number]
        low, high = max(first - begin, 0), min(last - begin, info.samples)
        if low < high:
            # All ranks permute a shard alike, so that those who share one never take the same sample.
            within = _random(seed, epoch, 1, int(number)).permutation(info.samples) if shuffle else None
            positions = range(low, high) if within is None else within[low:high].tolist()
            pieces.append(_Piece(info, tuple(positions)))
        begin += info.samples
    return pieces


def _windows(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    window: list[_Piece] = []
    samples, size = 0, 0
    for piece in pieces:
        more = piece.shard.bytes * len(piece.positions) // piece.shard.samples
        if window and (samples + len(piece.positions) > WINDOW_SAMPLES or size + more > WINDOW_BYTES):
            yield window
            window, samples, size = [], 0, 0
        window.append(piece)
        samples += len(piece.positions)
        size += more
    if window:
        yield window


def _read(shards: ShardSet, places: Sequence[Place]) -> Iterator[Sample]:
    """The samples at `places`, in that order; each shard is opened once, and those read too early are held."""
    by_shard: dict[str, list[int]] = {}
    for place in places:
        by_shard.setdefault(place.shard.name, []).append(place.position)
    coming = (
        ((name, position), sample)
        for name, positions in by_shard.items()
        for position, sample in _at(shards, name, sorted(positions))
    )
    found: dict[tuple[str, int], Sample] = {}
    for place in places:
        wanted = (place.shard.name, place.position)
        while wanted not in found:
            at, sample = next(coming)
            found[at] = sample
        yield found.pop(wanted)


def _at(shards: ShardSet, name: str, positions: Sequence[int]) -> Iterator[tuple[int, Sample]]:
    """The samples at rising `positions` of a shard, with their positions."""
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
    # Seeds are taken as unsigned: numpy refuses a negative one.
    return np.random.default_rng(np.random.SeedSequence([number & 0xFFFF_FFFF_FFFF_FFFF for number in numbers]))
