"""A Ray cluster of several machines, simulated on this one: a head, and workers that can be lost in every way.

    with Machines() as machines:
        one = machines.add(cpus=2)
        driver = machines.start([sys.executable, "-m", "jobs", "caption", …])     on the head
        machines.kill(one)         like a power cut
        machines.cut(one); machines.mend(one)
        machines.drain(one, 30)    like a spot notice

Each machine is a raylet with a temporary folder of its own and, where this process is root, a network of its own
(`apart`); all other files, processes and cores are shared. The cluster requires a token, as every new one does.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.networks import Network, can_isolate
from tests.jobs.test_caption import descendants, is_running

ROOT = Path(__file__).resolve().parents[2]
#: A PATH without this environment: a cluster's Python is often not on the PATH.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STORE_BYTES = 100 * 1024**2
#: Seconds for a machine to start or to be declared lost, enough for a very busy computer.
_PATIENCE = 240.0


@dataclass(frozen=True)
class Machine:
    """One machine: its name in the cluster, its address, and the parent of all its processes."""

    name: str
    address: str
    process: subprocess.Popen[bytes]


class Machines:
    """A cluster. Closing it stops everything it started, whatever happened before."""

    def __init__(self, *, head_cpus: int = 1, environment: Mapping[str, str] | None = None) -> None:
        """The head alone, with `head_cpus` CPUs; `environment` is added to that of each machine."""
        self.apart = can_isolate()
        self.token = secrets.token_hex(16)
        self._more = dict(environment or {})
        # Socket paths have at most 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))
        self._network = Network() if self.apart else None
        self._machines: dict[str, Machine] = {}
        self._started: list[subprocess.Popen[Any]] = []
        self._ports = {name: free_port() for name in ("port", "dashboard-port", "ray-client-server-port")}
        try:
            self.head = self._start("head", ["--head", *self._head_options()], cpus=head_cpus)
            self._wait(lambda: self.states().get("head") == "ALIVE", self.head)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Machines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # For clients.

    @property
    def url(self) -> str:
        """The address of the Jobs API."""
        return f"http://{self._address('head')}:{self._ports['dashboard-port']}"

    @property
    def ray_address(self) -> str:
        """RAY_ADDRESS for a driver on the head."""
        return f"{self._address('head')}:{self._ports['port']}"

    @property
    def gateway(self) -> str:
        """The address at which the machines reach a server that this process starts (bound to it, or to all)."""
        return "127.0.0.1" if self._network is None else self._network.gateway

    @property
    def client_environment(self) -> dict[str, str]:
        """What a client's environment needs: the token and its mode."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    # Changes to the cluster.

    def add(
        self, name: str | None = None, *, cpus: int = 2, gpus: int = 0, resources: Mapping[str, float] | None = None
    ) -> Machine:
        """Add a worker, with simulated GPUs. Returns when it is part of the cluster."""
        name = name or f"worker{len(self._machines)}"
        machine = self._start(name, ["--address", self.ray_address], cpus=cpus, gpus=gpus, resources=resources)
        self._wait(lambda: self.states().get(name) == "ALIVE", machine)
        return machine

    def kill(self, machine: Machine) -> None:
        """SIGKILL all of its processes at once, so that none can send anything."""
        found = self._processes(machine)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            # Processes started in the meantime.
            found += [process for process in self._processes(machine) if process not in found]
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        machine.process.wait()
        while any(map(is_running, found)):
            time.sleep(0.02)

    def cut(self, machine: Machine) -> None:
        """Take its link down, so that it and the others no longer hear from each other."""
        assert self._network is not None, "only machines with networks of their own can be cut off"
        self._network.cut(machine.name)

    def mend(self, machine: Machine) -> None:
        """Take its link up again."""
        assert self._network is not None, "only machines with networks of their own can be cut off"
        self._network.mend(machine.name)

    def drain(self, machine: Machine, seconds: int) -> None:
        """Announce to the cluster that this machine will be gone in `seconds`."""
        [node] = [node["node_id"] for node in self._nodes() if node["node_name"] == machine.name]
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.ray_address]
        command += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "spot notice", "--deadline-remaining-seconds", str(seconds)]
        done = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = done.communicate()
        assert done.returncode == 0, said

    def start(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a process on the head, with RAY_ADDRESS set; `options` are those of `Popen`."""
        chosen = {**self._environment("head"), "RAY_ADDRESS": self.ray_address, **(environment or {})}
        inside = [] if self._network is None else self._network.inside("head")
        process = subprocess.Popen([*inside, *command], env=chosen, cwd=ROOT, start_new_session=True, **options)
        self._started.append(process)
        return process

    # The cluster's state.

    def machine(self, name: str) -> Machine:
        """The machine of this name."""
        return self._machines[name]

    def states(self) -> dict[str, str]:
        """ALIVE or DEAD, by machine; empty while the head does not answer."""
        return {node["node_name"]: node["state"] for node in self._nodes()}

    def wait_until_lost(self, machine: Machine) -> None:
        """Return when the head has declared this machine dead."""
        self._wait(lambda: self.states().get(machine.name) == "DEAD", self.head)

    def close(self) -> None:
        """Stop everything, and leave nothing behind."""
        for process in self._started:
            _kill_family(process)
        for machine in reversed(self._machines.values()):
            self.kill(machine)
        if self._network is not None:
            self._network.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(
        self,
        name: str,
        options: Sequence[str],
        *,
        cpus: int,
        gpus: int = 0,
        resources: Mapping[str, float] | None = None,
    ) -> Machine:
        assert name not in self._machines, f"there is a machine {name} already"
        address = "127.0.0.1" if self._network is None else self._network.join(name)
        inside = [] if self._network is None else self._network.inside(name)
        (self._folder / name / "tmp").mkdir(parents=True)
        command = [*inside, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += ["--node-name", name, "--node-ip-address", address, "--temp-dir", str(self._folder / name)]
        command += ["--num-cpus", str(cpus), "--num-gpus", str(gpus), "--resources", json.dumps(dict(resources or {}))]
        command += ["--object-store-memory", str(_STORE_BYTES), "--disable-usage-stats"]
        # Any free ports: on a shared network several raylets would try the same range.
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
        command += ["--dashboard-agent-listen-port", str(free_port())]
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment(name), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        machine = self._machines[name] = Machine(name, address, process)
        return machine

    def _head_options(self) -> list[str]:
        ports = [word for name, port in self._ports.items() for word in (f"--{name}", str(port))]
        return [*ports, "--include-dashboard", "true", "--dashboard-host", "0.0.0.0"]

    def _environment(self, name: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CHAOS_"))}
        return {
            **inherited,
            **self.client_environment,
            "PATH": _PATH,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self._folder / name / "tmp"),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "PACE_MACHINE": name,
            **self._more,
        }

    def _address(self, name: str) -> str:
        return self._machines[name].address

    def _nodes(self) -> list[dict[str, Any]]:
        request = urllib.request.Request(f"{self.url}/api/v0/nodes", headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return found

    def _processes(self, machine: Machine) -> list[int]:
        found = [machine.process.pid, *descendants(machine.process.pid)] if machine.process.poll() is None else []
        if self._network is not None:
            found += [process for process in self._network.processes(machine.name) if process not in found]
        return found

    def _wait(self, reached: Any, machine: Machine) -> None:
        until = time.monotonic() + _PATIENCE
        while not reached():
            if machine.process.poll() is not None or time.monotonic() > until:
                log = self._folder / f"{machine.name}.log"
                raise RuntimeError(f"{machine.name} did not come to it:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)


def _kill_family(process: subprocess.Popen[Any]) -> None:
    for pid in [process.pid, *descendants(process.pid)] if process.poll() is None else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
