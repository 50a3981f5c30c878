"""The server's Prometheus metrics."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one server, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("captioning_requests", "Requests to /caption by status.", ["status"], **made)
        self._images = Counter(
            "captioning_images", "Images by captioner and outcome: ok or an error class.", ["model", "outcome"], **made
        )
        self._seconds = Histogram(
            "captioning_request_seconds", "Duration of requests to /caption.", buckets=_SECONDS, **made
        )
        self._stages = Histogram(
            "captioning_stage_seconds",
            "Seconds per image in decoding, in the queue and in the model's batch.",
            ["stage"],
            buckets=_SECONDS,
            **made,
        )
        self._batches = Histogram(
            "captioning_batch_images",
            "Images in the batch of each image.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            **made,
        )
        self._in_flight = Gauge("captioning_requests_under_way", "Requests to /caption in progress.", **made)

    def request(self, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def image(self, model: str, outcome: str, timing: Mapping[str, float] | None = None) -> None:
        """Count an image: `ok` with its timing, or its error's class."""
        self._images.labels(model, outcome).inc()
        if timing is not None:
            for stage in ("decode", "queue", "model"):
                self._stages.labels(stage).observe(timing[f"{stage}_ms"] / 1000)
            self._batches.observe(timing["batch_size"])

    def text(self, in_flight: int) -> bytes:
        """All metrics in Prometheus's text format."""
        self._in_flight.set(in_flight)
        return generate_latest(self._registry)
