"""Runs `python -m cluster` as a user would, against a simulated cluster."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machines import ROOT, Machines


@dataclass(frozen=True)
class Client:
    """Sends commands to the cluster of `machines` over HTTP, from `folder`."""

    machines: Machines
    folder: Path

    def run(self, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        options = self._options(token)
        return subprocess.run(self._command(*arguments), capture_output=True, timeout=500, **options)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command without waiting for it."""
        return subprocess.Popen(
            self._command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **self._options(None)
        )

    def _command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cluster", name, "--address", self.machines.url, *arguments]

    def _options(self, token: str | None) -> dict:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # RAY_AUTH_MODE is not set: an existing token is sent anyway.
        given = {"PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": token or self.machines.token}
        return {"env": {**kept, **given}, "cwd": self.folder, "text": True}
