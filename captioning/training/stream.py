"""One epoch of a split's samples, for one of several training workers.

The samples of all shards, in the epoch's order of shards, form one sequence; rank r of W has the
places from r·N/W to (r+1)·N/W of it, so that the ranks' shares differ by one sample at most and
each sample is seen once an epoch, whatever W is. Who reads what is known from the counts alone,
before a tar is opened; a rank opens only the tars that it needs. This module decodes no image and
knows nothing of batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from captioning.data.shards import Sample, ShardInfo, ShardSet, iterate_shard
from captioning.errors import InputError

#: Samples are shuffled together within a window of whole pieces of shards: this many samples, or bytes if fewer.
WINDOW_SAMPLES = 2048
WINDOW_BYTES = 256 * 2**20


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

    The same arguments give the same samples in the same order. With `shuffle` the order of shards
    changes by (seed, epoch), and samples are permuted within each shard and then within windows of
    some 2,000 samples over several shards; without it they come in the order of the shards.
    Raises `InputError` for an unknown split or a shard that has not the samples its set counted.
    """
    if not 0 <= rank < world or start < 0:
        raise ValueError(f"rank {rank} of {world} workers, starting at {start}, makes no sense")
    pieces = _share(shards.split(split), epoch=epoch, seed=seed, rank=rank, world=world, shuffle=shuffle)
    if not shuffle:
        yield from _in_order(shards, pieces, start)
        return
    for number, window in enumerate(_windows(pieces)):
        places = [(piece.shard.name, position) for piece in window for position in piece.positions]
        if start >= len(places):
            start -= len(places)
            continue
        order = _random(seed, epoch, 2, rank, world, number).permutation(len(places))[start:]
        start = 0
        wanted = [places[place] for place in order]
        read = _read(shards, wanted)
        for place in wanted:
            yield read.pop(place)


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


def _read(shards: ShardSet, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Sample]:
    """The samples at the (shard, position) places `wanted`; each shard is opened once."""
    by_shard: dict[str, list[int]] = {}
    for name, position in wanted:
        by_shard.setdefault(name, []).append(position)
    found = {}
    for name, positions in by_shard.items():
        for position, sample in _at(shards, name, sorted(positions)):
            found[name, position] = sample
    return found


def _in_order(shards: ShardSet, pieces: Sequence[_Piece], start: int) -> Iterator[Sample]:
    for piece in pieces:
        positions = piece.positions[start:]
        start = max(0, start - len(piece.positions))
        if positions:
            for _, sample in _at(shards, piece.shard.name, positions):
                yield sample


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
