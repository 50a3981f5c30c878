"""Collects a run's status from file names and the event log, and from the table only when asked. `status` prints it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.errors import StorageError, UsageError
from captioning.run.events import CAPTION_EVENTS, END_EVENTS, REDO_EVENTS, read_events
from captioning.run.layout import RunLayout
from captioning.run.lock import LockOwner, lock_owner
from captioning.run.progress import RunProgress, run_progress
from captioning.storage import Location
from captioning.storage_errors import storage_errors

#: The current rate is measured over this many seconds at the end of the event log.
_RATE_SECONDS = 120.0
#: A driver writes to the event log every few seconds; after this long without a line it is taken for stopped.
_SILENCE_SECONDS = 90.0
_LAST_EVENTS = 3


@dataclass(frozen=True)
class Status:
    """A run's status. `errors` counts error rows by class, in the table if `errors_read`, else in the event log."""

    progress: RunProgress
    state: str
    """`done`, `running` or `stopped`."""
    holder: str | None
    """The driver at work; None where there is none."""
    errors: dict[str, int]
    errors_read: bool
    images_per_second: float | None
    seconds_left: float | None
    last: tuple[dict[str, Any], ...]


def status_of(layout: RunLayout, *, read_errors: bool = False, now: datetime | None = None) -> Status:
    """The status of the run in `layout`. Raises `UsageError` where there is none, and `StorageError`."""
    if not layout.exists():
        raise UsageError(f"There is no run in {layout.root} (it has no _run/run.json). Pass a run's OUTPUT.")
    stands = run_progress(layout)
    events = read_events(layout)
    holds, alive = _holder(layout)
    at_work = alive if alive is not None else _is_at_work(events, now or datetime.now(UTC))
    state = "done" if stands.finished else "running" if at_work else "stopped"
    rate = rate_of_late(events)
    left = stands.pending / rate if rate and state == "running" else None
    return Status(
        progress=stands,
        state=state,
        holder=str(holds) if at_work and holds is not None else None,
        errors=errors_in_table(layout) if read_errors else errors_in_log(events),
        errors_read=read_errors,
        images_per_second=rate,
        seconds_left=left,
        last=tuple(events[-_LAST_EVENTS:]),
    )


def rate_of_late(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Images a second in the last minutes of the last session; None where the event log does not tell.

    Start-up is left out: the rate is measured from the session's first finished shards on, if others followed.
    """
    begun: float | None = None
    marks: list[tuple[float, int]] = []
    for event in events:
        at = _time(event)
        if at is None:
            continue
        kind = event.get("event")
        if kind in CAPTION_EVENTS + REDO_EVENTS:
            begun, marks = at, []
        elif kind == "shards" and isinstance(event.get("images"), int):
            marks.append((at, event["images"]))
    if len(marks) == 1 and begun is not None:
        marks = [(begun, 0), *marks]
    late = [mark for mark in marks if mark[0] >= marks[-1][0] - _RATE_SECONDS]
    if len(late) < 2:
        return None
    seconds = late[-1][0] - late[0][0]
    images = sum(count for _, count in late[1:])
    return images / seconds if seconds > 0 and images else None


def errors_in_log(events: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Error rows by class, from the event log.

    A finished run has logged the counts of its table. Later shards are added to them; shards of a retry change
    nothing until it has finished too. Without such counts, shards that were done twice after a kill count twice.
    """
    found: Counter[str] = Counter()
    again = False
    for event in events:
        kind, classes = event.get("event"), event.get("error_classes")
        again = kind in REDO_EVENTS or (again and kind not in CAPTION_EVENTS)
        if not isinstance(classes, Mapping):
            continue
        counts = {str(name): count for name, count in classes.items() if isinstance(count, int)}
        if kind == "finished":
            found = Counter(counts)
        elif kind == "shards" and not again:
            found.update(counts)
    return dict(sorted(found.items()))


def errors_in_table(layout: RunLayout) -> dict[str, int]:
    """Error rows by class, from the parts and the staged shards. Raises `StorageError`."""
    found: Counter[str] = Counter()
    parts = layout.parts()
    folded = {number for part in parts for number in part.numbers}
    files = [layout.part(part) for part in parts]
    files += [layout.staged(number) for number in layout.staged_numbers() if number not in folded]
    for file in files:
        for value in _error_classes(file):
            found[value["values"]] += value["counts"]
    found.pop(None, None)  # type: ignore[call-overload]
    return dict(sorted(found.items()))


def _error_classes(file: Location) -> list[dict[str, Any]]:
    try:
        with storage_errors(file.uri), file.open_read() as handle:
            column = pq.ParquetFile(handle).read(columns=["error_class"])["error_class"]
    except pa.ArrowInvalid as error:
        raise StorageError("storage", f"{file} is damaged: {error}") from error
    counted: list[dict[str, Any]] = column.value_counts().to_pylist()
    return counted


def _holder(layout: RunLayout) -> tuple[LockOwner | None, bool | None]:
    """Who holds the OUTPUT, and whether it is alive; None where that cannot be read, and only the event log tells."""
    try:
        found = lock_owner(layout)
    except StorageError:
        return None, None
    return found, found.alive() if found is not None else False


def _is_at_work(events: Sequence[Mapping[str, Any]], now: datetime) -> bool:
    if not events or events[-1].get("event") in END_EVENTS:
        return False
    last = _time(events[-1])
    return last is not None and now.timestamp() - last < _SILENCE_SECONDS


def _time(event: Mapping[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(event["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
