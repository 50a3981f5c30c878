"""What a run counts at its end."""

from captioning.run.verify import Verdict
from jobs.driving.outcome import summarise
from jobs.runners.work import ShardResult, Tally


def tally_of(*work: tuple[str, int, int]) -> Tally:
    """Finished shards: the kind of work, the shard's number and its images."""
    tally = Tally()
    for kind, shard, images in work:
        tally.add(kind, ShardResult(shard=shard, images=images, error_classes={}, stages={}))
    return tally


def test_an_image_captioned_twice_leaves_no_negative_count() -> None:
    verdict = Verdict(ok=True, inputs=2, rows=2, problems=(), errors={})
    summary = summarise(tally_of(("retry", 0, 2), ("refresh", 0, 1)), verdict, seconds=1.0, steady_rate=None)
    assert (summary["captioned"], summary["already_done"]) == (3, 0)


def test_what_was_there_before_is_counted() -> None:
    verdict = Verdict(ok=True, inputs=10, rows=10, problems=(), errors={})
    summary = summarise(tally_of(("start", 0, 4)), verdict, seconds=2.0, steady_rate=None)
    assert (summary["captioned"], summary["already_done"], summary["images_per_second"]) == (4, 6, 2.0)
