"""A `python -m jobs serve` process for tests, on a free port."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    """A running server: its address, its process, and its output."""

    url: str
    process: "subprocess.Popen[str]"
    printed: list[str]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@contextmanager
def served(models: Sequence[str], *more: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "jobs", "serve", "--port", "0", *more]
    for model in models:
        command += ["--model", model]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    printed: list[str] = []
    rest = threading.Thread(target=lambda: printed.extend(process.stdout or ()))
    url = None
    try:
        for line in process.stdout:
            printed.append(line)
            found = re.match(r"Ready: (http://\S+)/ ", line)
            if found:
                url = found[1]
            if line.startswith("Press Ctrl-C"):
                break
        assert url is not None, "".join(printed)
        rest.start()
        yield Server(url, process, printed)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if rest.is_alive():
            rest.join(timeout=10)
