"""A run's event log: one JSON object a line, only ever added to, for people and for the report.

Nothing depends on it: a damaged line is passed over; no credentials are in it. Of what the events mean it knows only
which of them begin and end a stretch of work.
"""

import json
from datetime import UTC, datetime
from typing import Any

from captioning.redaction import redacted
from captioning.run.layout import RunLayout

#: A stretch of work begins, with images that have no row yet.
START = "start"
#: A stretch begins: for the first time, or with images whose rows are made again.
FIRST_TIME, AGAIN = (START,), ("retry", "refresh")
#: Nobody works on until the next stretch begins.
ENDS = ("finished", "interrupted", "stopped")


def append_event(layout: RunLayout, kind: str, **fields: Any) -> None:
    """Add an event with the present time (UTC). Raises `StorageError`.

    On an object store the file is written again each time: for events that are seconds apart.
    """
    event = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **redacted(fields)}
    layout.events.append_bytes((json.dumps(event, ensure_ascii=True) + "\n").encode())


def read_events(layout: RunLayout) -> list[dict[str, Any]]:
    """The events so far, in the order they were written."""
    if layout.events.info() is None:
        return []
    events = []
    for line in layout.events.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
