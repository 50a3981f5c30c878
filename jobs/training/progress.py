"""Displays the progress of a training run from the metrics in its OUTPUT, and keeps its page up to date."""

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from captioning.errors import CaptioningError, StorageError
from captioning.storage import Location
from captioning.training.state import saved_step
from jobs.display import Display
from jobs.progress import duration
from jobs.training.page import TrainPage
from jobs.watch import Watch

#: The keys of a validation's record that are not scores.
_NO_SCORES = frozenset({"kind", "step", "total_steps", "stage", "epoch", "images_seen", "seconds", "best", "samples"})


class TrainProgress(Watch):
    """A context manager that displays each new record of `OUTPUT/metrics.jsonl`.

    Steps are shown as progress, as the shared options say; notes and validations are always printed. `page`
    is rewritten after each validation and at the end.
    """

    def __init__(self, output: Location, page: TrainPage | None = None) -> None:
        super().__init__("train-progress", 2 if output.is_local else 10)
        self._output = output
        self._file = output / "metrics.jsonl"
        self._page = page
        self._seen: set[str] = set()
        self._last: dict[str, Any] = {}
        self._best: dict[str, Any] = {}
        self._display = Display(self)

    def __enter__(self) -> Self:
        # Skip the records of earlier starts, also those after the last saved state, whose steps are repeated.
        self._seen = set(self._lines())
        for line in self._seen:
            self._update(json.loads(line))
        self._display.__enter__()
        saved = saved_step(self._output) or 0
        if saved:
            self._display.print_line(f"Resuming from step {saved:,}.")
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.look()
        self._write_page()
        self._display.__exit__(kind, error, trace)

    def line(self) -> str:
        """The last step's record as a line, or a message that there is none yet."""
        return describe_record(self._last) if self._last else "Starting: loading workers, model and data."

    def fraction(self) -> float | None:
        """The fraction of steps that are done."""
        return self._last["step"] / max(self._last["total_steps"], 1) if self._last else None

    def details(self) -> list[tuple[str, str]]:
        """The best validation so far."""
        return [("best", describe_record({**self._best, "samples": []}))] if self._best else []

    def facts(self) -> Mapping[str, Any]:
        """The last step's record."""
        last = self._last
        if not last:
            return {"unit": "step", "done": 0, "total": None}
        rest = {name: value for name, value in last.items() if name not in ("kind", "step", "total_steps")}
        left = round(_seconds_left(last), 1)
        return {"unit": "step", "done": last["step"], "total": last["total_steps"], "seconds_left": left, **rest}

    def look(self) -> None:
        """Display new records."""
        validated = False
        for line in self._lines():
            if line in self._seen:
                continue
            self._seen.add(line)
            record = json.loads(line)
            self._update(record)
            if record["kind"] == "step":
                self._display.refresh()
            else:
                self._display.emit(record["kind"], record, describe_record(record))
                validated = validated or record["kind"] == "validation"
        if validated:
            self._write_page()

    def _update(self, record: dict[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] >= self._last.get("step", 0):
            self._last = record
        elif record["kind"] == "validation" and record["best"] and record["step"] >= self._best.get("step", 0):
            self._best = record

    def _write_page(self) -> None:
        if self._page is None:
            return
        try:
            self._page.write()
        except CaptioningError as error:  # must not stop the training
            self._display.print_line(f"The page {self._page.file} could not be written: {error}")
            self._page = None

    def _lines(self) -> list[str]:
        try:
            return self._file.read_text().splitlines() if self._file.exists() else []
        except StorageError:
            return []  # being replaced right now


def describe_record(record: Mapping[str, Any]) -> str:
    """A record of the training history as a readable line."""
    if record["kind"] == "note":
        return str(record["message"])
    place = f"step {record['step']:>6,}/{record['total_steps']:,}  {record['stage']} {record['epoch']:.2f}"
    if record["kind"] == "step":
        reward = f"  reward {record['reward']:.3f}" if "reward" in record else ""
        return (
            f"{place}  loss {record['loss']:.3f}{reward}  lr {record['lr']:.1e}  "
            f"{record['images_per_second']:.1f} images/s  {record['tokens_per_second']:,.0f} tokens/s  "
            f"data wait {record['data_wait_share']:.0%}  {duration(_seconds_left(record))} left"
        )
    if "cider_d" in record:
        scores = f"CIDEr-D {record['cider_d']:.1f}  BLEU-4 {record['bleu_4']:.1f}  ROUGE-L {record['rouge_l']:.1f}"
    else:
        others = {name: value for name, value in record.items() if name not in _NO_SCORES}
        scores = "  ".join(f"{name} {value:.2f}" for name, value in others.items())
    samples = "".join(f"\n    {key}: {caption}" for key, caption in record["samples"])
    best = "  (best so far)" if record["best"] else "  (best of this stage)" if record.get("best_of_stage") else ""
    return f"{place}  validation: {scores}{best}{samples}"


def _seconds_left(record: Mapping[str, Any]) -> float:
    return float((record["total_steps"] - record["step"]) * record["seconds"] / max(record["step"], 1))
