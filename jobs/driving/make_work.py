"""What the workers of a run need to know, from its settings and its plan: for `caption`, `retry` and `plan` alike."""

from typing import TYPE_CHECKING, Any

from captioning.run.book import ShardBook
from jobs.caption_settings import CaptionSettings
from jobs.runners.pools import Pools
from jobs.runners.work import Work
from jobs.workers.caption_shard import LoadCaptioner

if TYPE_CHECKING:
    from captioning.captioner_info import CaptionerInfo


def make_work(
    book: ShardBook,
    pools: Pools,
    settings: CaptionSettings,
    info: "CaptionerInfo",
    *,
    ref: str | None,
    decoding: dict[str, Any],
) -> Work:
    """The work of these pools on shards of `book`, by the captioner of REF; `decoding` is what was given of it."""
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
        book,
        info.preprocess,
        settings.storage,
        load,
        runtime.max_retries,
        fetch=settings.fetch,
        decode=settings.decode,
        hang_s=runtime.hang_s,
        stall_s=runtime.stall_s,
    )
