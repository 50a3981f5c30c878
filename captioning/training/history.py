"""The history of a training run: JSON lines, a plot of the curves, and TensorBoard files."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from captioning.errors import SettingsError
from captioning.storage import Location
from captioning.training.curves import draw_curves

METRICS = "metrics.jsonl"
CURVES = "curves.png"
TENSORBOARD = "tensorboard"

#: Called with every record as it is added (rank 0 only).
Report = Callable[[dict[str, Any]], None]


class History:
    """The records of a run, written to OUTPUT and passed to `report`."""

    def __init__(
        self,
        output: Location,
        records: list[dict[str, Any]],
        *,
        report: Report | None = None,
        tensorboard: bool = False,
    ) -> None:
        """`records` are those of a resumed run; TensorBoard then hides the events that came after them."""
        self.records = records
        self._output = output
        self._report = report
        self._tensorboard = tensorboard
        self._board: Any = None

    def add(self, record: dict[str, Any]) -> None:
        """Add a record and write the history."""
        if self._tensorboard and self._board is None:
            self._board = _open_board(self._output, self.records)
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
        """Write all records, and the plot if the last one is a validation."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
        (self._output / METRICS).write_text(lines)
        if self.records and self.records[-1]["kind"] == "validation":
            picture = draw_curves(self.records)
            if picture is not None:
                (self._output / CURVES).write_bytes(picture)


def check_tensorboard(output: Location) -> None:
    """Raise `SettingsError` if TensorBoard files cannot be written."""
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


def _open_board(output: Location, records: Sequence[Mapping[str, Any]]) -> Any:
    check_tensorboard(output)
    from torch.utils.tensorboard import SummaryWriter

    purge_step = records[-1]["step"] + 1 if records else None
    return SummaryWriter(str(output.local_path / TENSORBOARD), purge_step=purge_step)
