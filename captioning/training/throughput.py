"""What a training step measured, and rates and means over the steps between two records of the history."""

import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from captioning.training.workers import Workers

#: `ru_maxrss` is in KiB, on macOS in bytes.
_RSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10


@dataclass(frozen=True)
class StepMetrics:
    """One optimiser step over all workers: means per unit, counts, and the gradient's norm before clipping."""

    means: Mapping[str, float]
    units: int
    tokens: int
    images: int
    gradient_norm: float = 0.0

    @property
    def loss(self) -> float:
        """Mean loss per unit: a token, an image or a caption."""
        return self.means["loss"]


class ThroughputMeter:
    """Accumulates step metrics and where the time goes. Time passed to `exclude_pause` does not count in the rates."""

    def __init__(self) -> None:
        self._lap_started = self._started = self._step_ended = time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._sums: Counter[str] = Counter()
        self._units, self._tokens, self._images, self._steps = 0, 0, 0, 0
        self._data_wait, self._norms = 0.0, 0.0

    def batch_ready(self) -> None:
        """The batch of the next step has arrived; the time since the last step was spent waiting for data."""
        self._data_wait += time.perf_counter() - self._step_ended

    def step_done(self, metrics: StepMetrics) -> None:
        """Count a finished step."""
        self._sums.update({name: mean * metrics.units for name, mean in metrics.means.items()})
        self._units += metrics.units
        self._tokens += metrics.tokens
        self._images += metrics.images
        self._norms += metrics.gradient_norm
        self._steps += 1
        self._step_ended = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the last lap."""
        return time.perf_counter() - self._lap_started

    def lap(self) -> float:
        """Seconds since the last lap; starts the next one."""
        elapsed = self.elapsed()
        self._lap_started += elapsed
        return elapsed

    def exclude_pause(self) -> None:
        """Leave the time since the last step (a validation, say) out of the rates."""
        now = time.perf_counter()
        self._started += now - self._step_ended
        self._step_ended = now

    def flush(self, workers: Workers) -> dict[str, float]:
        """Means per unit and rates over all workers since the last flush, then start afresh. Called by all workers.

        `data_wait_share` is that of the worker that waited longest, memory the highest peak of any worker.
        """
        now = time.perf_counter()
        seconds = max(now - self._started, 1e-9)
        figures = {name: round(total / max(self._units, 1), 5) for name, total in self._sums.items()}
        figures |= {
            "gradient_norm": round(self._norms / max(self._steps, 1), 4),
            "tokens_per_second": round(self._tokens / seconds, 1),
            "images_per_second": round(self._images / seconds, 2),
        }
        own = {
            "data_wait_share": round(self._data_wait / seconds, 4),
            "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_PER_MB),
        }
        if workers.device.type == "cuda":
            own["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
        gathered = workers.gather(own)
        figures |= {name: max(theirs[name] for theirs in gathered) for name in own}
        self._started = self._step_ended = now
        self._reset()
        return figures
