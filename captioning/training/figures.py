"""Figures as a run goes: rates between two records, and the history that is written down and drawn.

Knows records and files; nothing of models or steps.
"""

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from captioning.errors import SettingsError
from captioning.storage import Location
from captioning.training.curves import draw_curves
from captioning.training.workers import Workers

METRICS = "metrics.jsonl"
CURVES = "curves.png"
TENSORBOARD = "tensorboard"

#: Peak memory is told in KiB, on macOS in bytes.
_RSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10

#: Hears every record of the history as it is made (rank 0 only).
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class StepFacts:
    """What one optimiser step saw, over all workers: means a unit, the gradient's norm, and counts."""

    means: Mapping[str, float]
    units: int
    tokens: int
    images: int
    gradient_norm: float = 0.0

    @property
    def loss(self) -> float:
        """Mean loss a unit: a token's, an image's or a caption's."""
        return self.means["loss"]


class Window:
    """Rates between two records: where the time went. What is no training, `rest` leaves out of them."""

    def __init__(self) -> None:
        self._saved = self._opened = self._ready = time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._sums: Counter[str] = Counter()
        self._units, self._tokens, self._images, self._steps = 0, 0, 0, 0
        self._waiting, self._norms = 0.0, 0.0

    def waited(self) -> None:
        """The next batch has come."""
        self._waiting += time.perf_counter() - self._ready

    def stepped(self, facts: StepFacts) -> None:
        """A step is done."""
        self._sums.update({name: mean * facts.units for name, mean in facts.means.items()})
        self._units += facts.units
        self._tokens += facts.tokens
        self._images += facts.images
        self._norms += facts.gradient_norm
        self._steps += 1
        self._ready = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the last lap."""
        return time.perf_counter() - self._saved

    def lap(self) -> float:
        """Seconds since the last lap; the next one begins."""
        elapsed = self.elapsed()
        self._saved += elapsed
        return elapsed

    def rest(self) -> None:
        """What went on until now (a validation, say) was no training: leave it out of the rates."""
        now = time.perf_counter()
        self._opened += now - self._ready
        self._ready = now

    def close(self, workers: Workers) -> dict[str, float]:
        """The window's figures over all workers, who close theirs together; the next one begins.

        Means a unit (a token, an image), and rates. The share of waiting for data is that of the
        worker that waited longest, memory the most that one has held so far.
        """
        now = time.perf_counter()
        seconds = max(now - self._opened, 1e-9)
        figures = {name: round(total / max(self._units, 1), 5) for name, total in self._sums.items()}
        figures |= {
            "gradient_norm": round(self._norms / max(self._steps, 1), 4),
            "tokens_per_second": round(self._tokens / seconds, 1),
            "images_per_second": round(self._images / seconds, 2),
        }
        own = {
            "data_wait_share": round(self._waiting / seconds, 4),
            "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_PER_MB),
        }
        if workers.device.type == "cuda":
            own["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
        every = workers.gather(own)
        figures |= {name: max(theirs[name] for theirs in every) for name in own}
        self._opened = self._ready = now
        self._reset()
        return figures


class History:
    """A run's records: kept as JSON lines and as a picture, told to whoever listens, shown in TensorBoard if asked."""

    def __init__(
        self,
        output: Location,
        records: list[dict[str, Any]],
        *,
        report: Report | None = None,
        tensorboard: bool = False,
    ) -> None:
        """`records` are those of before, where a run goes on; TensorBoard hides what it was shown behind them."""
        self.records = records
        self._output = output
        self._report = report
        self._tensorboard = tensorboard
        self._board: Any = None

    def add(self, record: dict[str, Any]) -> None:
        """Take in a record and write all of them down."""
        if self._tensorboard and self._board is None:
            self._board = _board(self._output, self.records)
        self.records.append(record)
        self.write()
        if self._report is not None:
            self._report(record)
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, int | float) and name not in ("step", "total_steps", "best"):
                    self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])
            for key, text in record.get("samples", ()):
                self._board.add_text(f"captions/{key}", text, record["step"])
            self._board.flush()

    def write(self) -> None:
        """Write the records, and the picture where the last one is of a validation."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
        (self._output / METRICS).write_text(lines)
        if self.records and self.records[-1]["kind"] == "validation":
            picture = draw_curves(self.records)
            if picture is not None:
                (self._output / CURVES).write_bytes(picture)


def check_board(output: Location) -> None:
    """Raise `SettingsError` where nothing can be written for TensorBoard."""
    if not output.is_local:
        raise SettingsError(
            f"tensorboard: its files can be written to a local OUTPUT only, not to {output}. Leave tensorboard out; "
            f"{METRICS} has the same figures."
        )
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "tensorboard: the package is not installed: pip install 'captioning[tensorboard]', or leave it out; "
            f"{METRICS} has the same figures."
        ) from error


def _board(output: Location, records: Sequence[Mapping[str, Any]]) -> Any:
    check_board(output)
    from torch.utils.tensorboard import SummaryWriter

    done = records[-1]["step"] + 1 if records else None
    return SummaryWriter(str(output.local_path / TENSORBOARD), purge_step=done)
