"""A check in a process of its own, which sends its findings as JSON lines on stdout.

    CheckProcess("jobs.diagnosis.ray_checks", {…}).findings(("ray",), seconds=60)     in this process
    given, report = start_reporting()                                                 in the check's process

A check that crashes because of a broken library, or hangs, is a finding too.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from jobs.diagnosis.all_checks import Finding

#: Seconds between SIGTERM and SIGKILL.
_STOP_SECONDS = 5.0


class CheckProcess:
    """Runs `python -m MODULE`, with JSON `values` as its input."""

    def __init__(self, module: str, values: Mapping[str, Any]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(dict(values)).encode())
            self._process.stdin.close()
        threading.Thread(target=self._read, daemon=True).start()

    def findings(self, names: Sequence[str], *, seconds: float) -> Iterator[Finding]:
        """Its findings, expected under these names in this order, for at most `seconds`."""
        until = time.monotonic() + seconds
        at = 0
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                yield Finding(names[min(at, len(names) - 1)], "fail", f"No answer in {seconds:.0f} seconds.")
                return
            if line is None:
                break
            finding = Finding.from_dict(json.loads(line))
            if finding.name in names:
                at = names.index(finding.name) + 1
            yield finding
        code = self._process.wait()
        if code:
            name = names[min(at, len(names) - 1)]
            yield Finding(name, "fail", f"The check's process {_ending(code)}. {self._last_error_line()}".rstrip())

    def stop(self) -> None:
        """Stop the process if it is still running."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _last_error_line(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


def start_reporting() -> tuple[dict[str, Any], Callable[[Finding], None]]:
    """In the check's process: its input, and a function that sends a finding. Other output goes to stderr."""
    given: dict[str, Any] = json.loads(sys.stdin.read() or "{}")
    findings = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(finding: Finding) -> None:
        print(json.dumps(finding.to_dict()), file=findings, flush=True)

    return given, report


def _ending(code: int) -> str:
    if code < 0 and -code in signal.valid_signals():
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
