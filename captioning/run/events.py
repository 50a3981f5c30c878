"""A run's event log: one JSON object per line, append-only, for users and for the report.

Correctness does not depend on it: damaged lines are skipped. It contains no credentials.
"""

import json
from datetime import UTC, datetime
from typing import Any

from captioning.redaction import redacted
from captioning.run.layout import RunLayout

#: A period of work begins, with images that have no row yet.
START = "start"
#: Events that begin a period of work: on images without a row, or on rows that are captioned again.
CAPTION_EVENTS, REDO_EVENTS = (START,), ("retry", "refresh")
#: Events that end a period of work.
END_EVENTS = ("finished", "interrupted", "stopped")


def append_event(layout: RunLayout, kind: str, **fields: Any) -> None:
    """Append an event with the current time (UTC). Raises `StorageError`.

    On an object store this rewrites the file: for events that are seconds apart.
    """
    event = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **redacted(fields)}
    layout.events.append_bytes((json.dumps(event, ensure_ascii=True) + "\n").encode())


def read_events(layout: RunLayout) -> list[dict[str, Any]]:
    """The events so far, in the order of writing."""
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
