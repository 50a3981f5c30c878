"""The network on which training workers find each other: that of the addresses by which Ray's nodes do.

Gloo goes by the host's name, which many systems (Debian's, containers) give to the loopback: workers on two
nodes then look for each other on their own. NCCL looks at the interfaces, and needs no help.
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
    """The network interface of this machine that has an IPv4 address, if one has. Linux only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no address, or no IPv4 one
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def choose_interface() -> None:
    """Have Gloo use the interface that this node's address is of, unless the environment says which."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(_VARIABLE, name)


class NodesBackend(_TorchBackend):  # type: ignore[misc]
    """Ray Train's own, with the interface chosen first."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called when the workers are there, and before they join."""
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class NodesConfig(TorchConfig):  # type: ignore[misc]
    """How workers on several nodes join."""

    @property
    def backend_cls(self) -> Any:
        """See `ray.train.backend.BackendConfig`."""
        return NodesBackend
