"""The pipeline in this process, without Ray: what `caption_shards` does, one shard after another."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import pyarrow as pa
import pytest

import jobs.caption_run
import jobs.retry_run
import jobs.run_driver
from jobs.caption_shard import CaptionShard
from jobs.decode_shard import DecodeShard
from jobs.pipeline import ShardResult, Work
from jobs.pools import Node, Pools


def in_process(work: Work, pools: Pools, shards: Sequence[int]) -> Iterator[ShardResult]:
    """Fetch, decode, caption and stage these shards."""
    decode = DecodeShard(work.book, work.preprocess, work.storage, work.fetching, work.decoding)
    actor = CaptionShard(work.load, work.book, pools.batch_size)
    for number in shards:
        [row] = actor(decode(pa.table({"shard": pa.array([number], pa.int64())}))).to_pylist()
        yield ShardResult.from_row(row)


def run_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`caption` and `retry` start no Ray."""
    for module in (jobs.caption_run, jobs.retry_run):
        monkeypatch.setattr(module, "ray_session", nullcontext)
        monkeypatch.setattr(module, "cluster_nodes", lambda: [Node(2)])
    monkeypatch.setattr(jobs.run_driver, "caption_shards", in_process)
