"""Makes training workers communicate over the network interface that Ray uses.

Gloo resolves the host's name, which many systems (Debian, containers) map to the loopback address, so that workers
on different nodes cannot reach each other. NCCL examines the interfaces and needs no help.
"""

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig

_VARIABLE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915
_TorchBackend: Any = TorchConfig().backend_cls


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface with the IPv4 address `address`, or None. Linux only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def choose_interface() -> None:
    """Make Gloo use the interface of this node's Ray address, unless the environment names one."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(_VARIABLE, name)


class MultiNodeTorchBackend(_TorchBackend):  # type: ignore[misc]
    """Ray Train's torch backend, with the network interface chosen first."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called after the workers have started, before they join the process group."""
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class MultiNodeTorchConfig(TorchConfig):  # type: ignore[misc]
    """Configures `MultiNodeTorchBackend`."""

    @property
    def backend_cls(self) -> Any:
        """See `ray.train.backend.BackendConfig`."""
        return MultiNodeTorchBackend
