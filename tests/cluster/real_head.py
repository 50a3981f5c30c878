"""A Ray head of its own for tests, as `ray start --head` makes it: token authentication, its own ports and folder."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.packaging import ROOT

_START_SECONDS = 180


@dataclass(frozen=True)
class RealHead:
    """A running head; `folder` is shared storage for its one node."""

    address: str
    token: str
    folder: Path

    def command(self, *arguments: str, token: str | None = None) -> list[str]:
        return [sys.executable, "-m", "cluster", arguments[0], "--address", self.address, *arguments[1:]]

    def environment(self, token: str | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**kept, "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": self.token if token is None else token}

    def run(self, *arguments: str, token: str | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run `python -m cluster` to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(token),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `python -m cluster`."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment(),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextmanager
def real_head(*, cpus: int = 2) -> Iterator[RealHead]:
    """Start a head, and end it with all that it started.

    The Python that runs Ray is not on the PATH of the head, nor is this checkout on its Python's path:
    what a job imports comes with its package.
    """
    token = "0f" * 32
    # Sockets have names of at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="head"))
    ports = free_ports(6)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={ports[0]}", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}"),
        *(f"--dashboard-agent-grpc-port={ports[3]}", f"--metrics-export-port={ports[4]}"),
        *(f"--ray-client-server-port={ports[5]}", f"--num-cpus={cpus}", "--object-store-memory=150000000"),
        *(f"--temp-dir={folder / 'ray'}", "--disable-usage-stats"),
    ]
    home = folder / "home"
    home.mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") and name not in ("PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "HOME")
    }
    environment |= {"PATH": _path_without_ray(), "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    log = folder / "start.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=written, stderr=subprocess.STDOUT, start_new_session=True
        )
    head = RealHead(f"http://127.0.0.1:{ports[1]}", token, folder)
    try:
        _wait(head, process, log)
        yield head
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _path_without_ray() -> str:
    """The PATH without the folder of this Python, and of any other that has Ray."""
    own = Path(sys.executable).parent
    kept = [place for place in ("/usr/local/bin", "/usr/bin", "/bin") if Path(place) != own]
    return os.pathsep.join(place for place in kept if not (Path(place) / "ray").exists())


def _wait(head: RealHead, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until jobs can be submitted."""
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"})
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, urllib.error.URLError, ValueError), urllib.request.urlopen(request) as answer:
            json.load(answer)
            return
        time.sleep(0.3)
    raise RuntimeError(f"The head did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the head and all that descends from it, by their ids: Ray's own way to end takes half a minute."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listing.splitlines():
        pid, parent = map(int, line.split())
        children.setdefault(parent, []).append(pid)
    doomed = [process.pid]
    for pid in doomed:
        doomed += children.get(pid, [])
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(60)
