"""A simulated network: a bridge, and for each machine a namespace with a link to it.

Needs root and iproute2. Names contain the id of the process that made them, so that the next test run can find and
remove what a killed one left.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
from functools import cache
from pathlib import Path

_PREFIX = "rehearsal"
_numbers = itertools.count()


def run_ip(*arguments: str) -> str:
    """Run `ip` and return its output. Raises `CalledProcessError`."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@cache
def can_isolate() -> bool:
    """Whether this process may create network namespaces, links and bridges."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with Network() as network:
            network.join("probe")
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


class Network:
    """A /24 in which this process has the first address, and each machine the next one."""

    def __init__(self) -> None:
        remove_abandoned()
        number = next(_numbers)
        place = os.getpid() + 4099 * number
        self._name = f"{_PREFIX}-{os.getpid()}-{number}"
        # Interface names have at most 15 characters.
        self._link = f"rh{os.getpid()}-{number}"
        self._subnet = f"10.{100 + place // 256 % 100}.{place % 256}"
        self._joined: dict[str, int] = {}
        #: This process's address for the machines.
        self.gateway = f"{self._subnet}.1"
        try:
            run_ip("link", "add", self._link, "type", "bridge")
            run_ip("addr", "add", f"{self.gateway}/24", "dev", self._link)
            run_ip("link", "set", self._link, "up")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def join(self, machine: str) -> str:
        """Create a namespace with a link for this machine, and return its address."""
        place = self._joined[machine] = len(self._joined) + 2
        namespace, outside, address = self.namespace(machine), self._outside(machine), f"{self._subnet}.{place}"
        run_ip("netns", "add", namespace)
        run_ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run_ip("link", "set", outside, "master", self._link, "up")
        run_ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            run_ip("-n", namespace, "link", "set", link, "up")
        return address

    def namespace(self, machine: str) -> str:
        """The name of its namespace."""
        return f"{self._name}-{machine}"

    def inside(self, machine: str) -> list[str]:
        """The command prefix that runs a program on that machine's network."""
        return ["ip", "netns", "exec", self.namespace(machine)]

    def processes(self, machine: str) -> list[int]:
        """The processes on that machine's network."""
        return _processes(self.namespace(machine))

    def cut(self, machine: str) -> None:
        """Take its link down: from now on nothing goes in or out, without any notice."""
        run_ip("link", "set", self._outside(machine), "down")

    def mend(self, machine: str) -> None:
        """Take its link up again."""
        run_ip("link", "set", self._outside(machine), "up")

    def close(self) -> None:
        """Remove the network, with everything that still runs in it."""
        for machine in self._joined:
            _remove_namespace(self.namespace(machine))
        _remove_link(self._link)

    def _outside(self, machine: str) -> str:
        return f"{self._link}.{self._joined[machine]}"


def remove_abandoned() -> None:
    """Remove the networks of processes that no longer exist."""
    for namespace in _listed("netns", "list"):
        if _is_abandoned(namespace, rf"{_PREFIX}-(\d+)-"):
            _remove_namespace(namespace)
    for link in _listed("-br", "link", "show", "type", "bridge"):
        if _is_abandoned(link, r"rh(\d+)-"):
            _remove_link(link)


def _listed(*arguments: str) -> list[str]:
    return [line.split()[0] for line in run_ip(*arguments).splitlines() if line.strip()]


def _is_abandoned(name: str, pattern: str) -> bool:
    found = re.match(pattern, name)
    return found is not None and not Path(f"/proc/{found[1]}").exists()


def _remove_namespace(name: str) -> None:
    for process in _processes(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    with contextlib.suppress(subprocess.CalledProcessError):
        run_ip("netns", "del", name)


def _remove_link(name: str) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        run_ip("link", "del", name)


def _processes(namespace: str) -> list[int]:
    try:
        return [int(process) for process in run_ip("netns", "pids", namespace).split()]
    except subprocess.CalledProcessError:
        return []
