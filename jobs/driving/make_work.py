"""Assembles the `Work` that is sent to workers, from settings and pools: for `caption`, `retry` and `plan`."""

from typing import TYPE_CHECKING, Any

from captioning.run.shard_io import ShardIO
from jobs.caption_settings import CaptionSettings
from jobs.runners.pools import Pools
from jobs.runners.work import Work
from jobs.workers.caption_shard import LoadCaptioner

if TYPE_CHECKING:
    from captioning.captioner_info import CaptionerInfo


def make_work(
    shard_io: ShardIO,
    pools: Pools,
    settings: CaptionSettings,
    info: "CaptionerInfo",
    *,
    ref: str | None,
    decoding: dict[str, Any],
) -> Work:
    """The work of these pools on shards of `shard_io`; `decoding` has the decoding keys that the user set."""
    runtime = settings.runtime
    load = LoadCaptioner(
        ref=ref,
        name=info.name,
        device=pools.device,
        precision=runtime.precision,
        decoding=decoding,
        storage=settings.storage,
        threads=pools.threads,
        encoder=runtime.encoder,
        cuda_graphs=runtime.cuda_graphs,
        gpu_share=pools.gpus_per_actor,
    )
    return Work(
        shard_io,
        info.preprocess,
        settings.storage,
        load,
        runtime.max_retries,
        fetch=settings.fetch,
        decode=settings.decode,
        hang_s=runtime.hang_s,
        stall_s=runtime.stall_s,
    )
