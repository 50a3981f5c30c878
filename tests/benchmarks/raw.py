"""Raw timings on disk: a file for each part of the benchmark, rewritten after every measurement.

A stopped benchmark loses nothing: its measurements are kept, and `resume` continues from them. A measurement is
any mapping.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Turn = dict[str, Any]


class Turns:
    """The measurements of one part, in the order in which they were made."""

    def __init__(
        self, path: Path, settings: Mapping[str, Any], conditions: Mapping[str, Any], *, resume: bool = False
    ) -> None:
        """Start over, or with `resume` continue from what was measured under the same settings."""
        self._path = path
        self._content = {"settings": dict(settings), "conditions": dict(conditions), "turns": []}
        if resume and path.exists():
            before = json.loads(path.read_text())
            if before["settings"] == json.loads(json.dumps(settings)):
                self._content = before

    def __len__(self) -> int:
        return len(self._content["turns"])

    def have(self, **which: Any) -> bool:
        """Whether there is a measurement with all these values."""
        return any(which.items() <= turn.items() for turn in self._content["turns"])

    def add(self, turn: Turn) -> None:
        """Save a measurement."""
        self._content["turns"].append(turn)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._content, indent=1) + "\n")
        os.replace(temporary, self._path)


def read_raw(folder: Path) -> dict[str, dict[str, Any]]:
    """The saved measurements in `folder`, by part: `settings`, `conditions` and `turns`."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
