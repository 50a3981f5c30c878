"""Prints a job's log; in a terminal, each line of progress replaces the one before."""

import re
import shutil
from typing import TextIO

from captioning.redaction import without_secrets

#: A line of progress of any verb: `1,024 of 7,235 images (14.2%), …`.
PROGRESS = re.compile(r"^\s*\d[\d,]* of \d[\d,]*\b")
_UP_AND_CLEAR = "\x1b[1A\x1b[2K"


class LogView:
    """Called with each piece of a log, writes it to `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._replaces = stream.isatty()
        self._rest = ""
        self._last_was_progress = False

    def __call__(self, text: str) -> None:
        """Show a piece of text, which may end within a line."""
        if not self._replaces:
            self._stream.write(without_secrets(text))
        else:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._show(without_secrets(line))
        self._stream.flush()

    def end(self) -> None:
        """Show a last line without a newline."""
        if self._rest:
            self._stream.write(f"{without_secrets(self._rest)}\n")
            self._rest = ""

    def _show(self, line: str) -> None:
        # A wrapped line would take more than one step up.
        progress = bool(PROGRESS.match(line)) and len(line) < shutil.get_terminal_size().columns
        if progress and self._last_was_progress:
            self._stream.write(_UP_AND_CLEAR)
        self._stream.write(f"{line}\n")
        self._last_was_progress = progress
