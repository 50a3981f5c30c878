"""A runner in this process, without Ray: what `caption_shards` does, one shard after another."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

import jobs.driving.driver
from jobs.runners.pools import Node, Pools
from jobs.runners.work import ShardResult, Work
from jobs.workers.caption_shard import CaptionShard
from jobs.workers.decode_shard import DecodeShard

CaptionShards = Callable[[Work, Pools, Sequence[int]], Iterator[ShardResult]]


def in_process(work: Work, pools: Pools, shards: Sequence[int]) -> Iterator[ShardResult]:
    """Fetch, decode, caption and stage these shards."""
    decode = DecodeShard(work.shard_io, work.preprocess, work.storage, work.fetch, work.decode)
    actor = CaptionShard(work.load, work.shard_io, pools.batch_size)
    for number in shards:
        [row] = actor(decode(pa.table({"shard": pa.array([number], pa.int64())}))).to_pylist()
        yield ShardResult.from_row(row)


@dataclass(frozen=True)
class FakeRunner:
    """Two CPUs, and whatever captions."""

    caption_shards: CaptionShards

    def nodes(self) -> list[Node]:
        return [Node(2)]

    def max_workers(self, shards: int, images: int) -> int:
        return shards

    def require_shared(self, file: Path) -> None:
        pass

    def observe(self, *_: object) -> nullcontext[None]:
        return nullcontext()


def run_with(monkeypatch: pytest.MonkeyPatch, caption_shards: CaptionShards) -> None:
    """`caption` and `retry` have their shards captioned by this."""

    @contextmanager
    def open_runner(*_: object) -> Iterator[FakeRunner]:
        yield FakeRunner(caption_shards)

    monkeypatch.setattr(jobs.driving.driver, "open_runner", open_runner)


def run_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`caption` and `retry` start no Ray, and no process."""
    run_with(monkeypatch, in_process)
