"""Tells how a training run goes, from the figures that it writes to its OUTPUT: a line a record."""

import json
import threading
from types import TracebackType
from typing import Any

from captioning.errors import StorageError
from captioning.storage import Location
from captioning.training.state import saved_step

#: What of a validation's record is no score.
_NO_SCORES = frozenset({"kind", "step", "total_steps", "stage", "epoch", "images_seen", "seconds", "best", "samples"})


class Teller:
    """While in its `with` block, prints each new record of `OUTPUT/metrics.jsonl`."""

    def __init__(self, output: Location) -> None:
        self._output = output
        self._file = output / "metrics.jsonl"
        self._told: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="train-progress", daemon=True)

    def __enter__(self) -> "Teller":
        # What an earlier start left is known, also what it did behind its last saved state, which will be done again.
        self._told = set(self._lines())
        saved = saved_step(self._output) or 0
        if saved:
            print(f"Going on from step {saved:,}.")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._tell()

    def _watch(self) -> None:
        while not self._ended.wait(2 if self._file.is_local else 10):
            self._tell()

    def _tell(self) -> None:
        for line in self._lines():
            if line not in self._told:
                self._told.add(line)
                print(describe_record(json.loads(line)), flush=True)

    def _lines(self) -> list[str]:
        try:
            return self._file.read_text().splitlines() if self._file.exists() else []
        except StorageError:
            return []  # being replaced just now; the next look will do


def describe_record(record: dict[str, Any]) -> str:
    """A record of the training history as a line for people."""
    if record["kind"] == "note":
        return str(record["message"])
    place = f"step {record['step']:>6,}/{record['total_steps']:,}  {record['stage']} {record['epoch']:.2f}"
    if record["kind"] == "step":
        left = (record["total_steps"] - record["step"]) * record["seconds"] / max(record["step"], 1)
        reward = f"  reward {record['reward']:.3f}" if "reward" in record else ""
        return (
            f"{place}  loss {record['loss']:.3f}{reward}  lr {record['lr']:.1e}  "
            f"{record['images_per_second']:.1f} img/s  {record['tokens_per_second']:,.0f} tokens/s  "
            f"data wait {record['data_wait_share']:.0%}  {int(left // 60)}:{int(left % 60):02d} left"
        )
    if "cider_d" in record:
        scores = f"CIDEr-D {record['cider_d']:.1f}  BLEU-4 {record['bleu_4']:.1f}  ROUGE-L {record['rouge_l']:.1f}"
    else:
        told = {name: value for name, value in record.items() if name not in _NO_SCORES}
        scores = "  ".join(f"{name} {value:.2f}" for name, value in told.items())
    said = "".join(f"\n    {key}: {caption}" for key, caption in record["samples"])
    return f"{place}  validation: {scores}{'  (best so far)' if record['best'] else ''}{said}"
