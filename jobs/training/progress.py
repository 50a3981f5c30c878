"""Tells how a training run goes, from the figures that it writes to its OUTPUT, and keeps its page up to date."""

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

#: What of a validation's record is no score.
_NO_SCORES = frozenset({"kind", "step", "total_steps", "stage", "epoch", "images_seen", "seconds", "best", "samples"})


class Teller(Watch):
    """While in its `with` block, tells of each new record of `OUTPUT/metrics.jsonl`.

    Steps are progress, shown as the shared options ask; notes and validations are always told. With a
    `page`, that is written anew after each validation and at the end.
    """

    def __init__(self, output: Location, page: TrainPage | None = None) -> None:
        super().__init__("train-progress", 2 if output.is_local else 10)
        self._output = output
        self._file = output / "metrics.jsonl"
        self._page = page
        self._told: set[str] = set()
        self._last: dict[str, Any] = {}
        self._best: dict[str, Any] = {}
        self._display = Display(self)

    def __enter__(self) -> Self:
        # What an earlier start left is known, also what it did behind its last saved state, which will be done again.
        self._told = set(self._lines())
        for line in self._told:
            self._learn(json.loads(line))
        self._display.__enter__()
        saved = saved_step(self._output) or 0
        if saved:
            self._display.print_line(f"Going on from step {saved:,}.")
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.look()
        self._draw()
        self._display.__exit__(kind, error, trace)

    def line(self) -> str:
        """The last step's record, or that there is none yet."""
        return describe_record(self._last) if self._last else "Starting: workers, model and data are being loaded."

    def fraction(self) -> float | None:
        """The share of steps done."""
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
        """Tell what is new."""
        validated = False
        for line in self._lines():
            if line in self._told:
                continue
            self._told.add(line)
            record = json.loads(line)
            self._learn(record)
            if record["kind"] == "step":
                self._display.refresh()
            else:
                self._display.emit(record["kind"], record, describe_record(record))
                validated = validated or record["kind"] == "validation"
        if validated:
            self._draw()

    def _learn(self, record: dict[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] >= self._last.get("step", 0):
            self._last = record
        elif record["kind"] == "validation" and record["best"] and record["step"] >= self._best.get("step", 0):
            self._best = record

    def _draw(self) -> None:
        if self._page is None:
            return
        try:
            self._page.write()
        except CaptioningError as error:  # a page that cannot be written stops no training
            self._display.print_line(f"The page {self._page.file} could not be written: {error}")
            self._page = None

    def _lines(self) -> list[str]:
        try:
            return self._file.read_text().splitlines() if self._file.exists() else []
        except StorageError:
            return []  # being replaced just now; the next look will do


def describe_record(record: Mapping[str, Any]) -> str:
    """A record of the training history as a line for people."""
    if record["kind"] == "note":
        return str(record["message"])
    place = f"step {record['step']:>6,}/{record['total_steps']:,}  {record['stage']} {record['epoch']:.2f}"
    if record["kind"] == "step":
        reward = f"  reward {record['reward']:.3f}" if "reward" in record else ""
        return (
            f"{place}  loss {record['loss']:.3f}{reward}  lr {record['lr']:.1e}  "
            f"{record['images_per_second']:.1f} img/s  {record['tokens_per_second']:,.0f} tokens/s  "
            f"data wait {record['data_wait_share']:.0%}  {duration(_seconds_left(record))} left"
        )
    if "cider_d" in record:
        scores = f"CIDEr-D {record['cider_d']:.1f}  BLEU-4 {record['bleu_4']:.1f}  ROUGE-L {record['rouge_l']:.1f}"
    else:
        told = {name: value for name, value in record.items() if name not in _NO_SCORES}
        scores = "  ".join(f"{name} {value:.2f}" for name, value in told.items())
    said = "".join(f"\n    {key}: {caption}" for key, caption in record["samples"])
    mark = "  (best so far)" if record["best"] else "  (best of this stage)" if record.get("best_of_stage") else ""
    return f"{place}  validation: {scores}{mark}{said}"


def _seconds_left(record: Mapping[str, Any]) -> float:
    return float((record["total_steps"] - record["step"]) * record["seconds"] / max(record["step"], 1))
