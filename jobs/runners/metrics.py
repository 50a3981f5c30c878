"""Metrics of a run: counters and gauges that Ray exports to Prometheus.

Ray prefixes the names with `ray_` and appends `_total` to those of counters.
"""

from jobs.runners.work import ShardResult

#: Names as given to Ray, with their descriptions; each metric has the tag `run`.
COUNTERS = {
    "captioning_images": "Images that have their row, captioned or with an error.",
    "captioning_errors": "Images that have an error row, by `error_class`.",
    "captioning_shards": "Shards that are finished.",
    "captioning_stage_seconds": "Busy seconds of workers, by `stage`.",
}
GAUGES = {
    "captioning_pending_images": "Images of the run that have no row yet.",
    "captioning_pending_shards": "Shards that are not finished yet.",
    "captioning_images_per_second": "Images per second since the first finished shard.",
    "captioning_captioners": "Captioner processes that the run has requested.",
}
_TAGS = {"captioning_errors": ("error_class",), "captioning_stage_seconds": ("stage",)}


class RunMetrics:
    """The metrics of one run, set by its driver. Needs a connection to Ray."""

    def __init__(self, run: str) -> None:
        """`run` is the OUTPUT, without secrets."""
        from ray.util.metrics import Counter, Gauge

        self._tags = {"run": run}
        self._counters = {
            name: Counter(name, text, tag_keys=("run", *_TAGS.get(name, ()))) for name, text in COUNTERS.items()
        }
        self._gauges = {name: Gauge(name, text, tag_keys=("run",)) for name, text in GAUGES.items()}

    def add(self, result: ShardResult) -> None:
        """Count a finished shard."""
        self._count("captioning_images", result.images)
        self._count("captioning_shards", 1)
        for error_class, count in result.error_classes.items():
            self._count("captioning_errors", count, error_class=error_class)
        for stage, seconds in result.stages.items():
            self._count("captioning_stage_seconds", seconds, stage=stage)

    def set_remaining(self, *, images: int, shards: int, captioners: int, rate: float | None) -> None:
        """Set the remaining images and shards, the captioners, and the rate (images/s; None if unknown yet)."""
        self._gauge("captioning_pending_images", images)
        self._gauge("captioning_pending_shards", shards)
        self._gauge("captioning_captioners", captioners)
        self._gauge("captioning_images_per_second", rate or 0.0)

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray's counters refuse zero
            self._counters[name].inc(value, tags=self._tags | tags)

    def _gauge(self, name: str, value: float) -> None:
        self._gauges[name].set(value, tags=self._tags)
