"""Connects to hosts on the public internet only, unless a setting allows private addresses.

The host name is resolved here, each of its addresses is checked, and the connection is made to a checked
address, so that a name which resolves differently the second time (DNS rebinding) gains nothing.
"""

import ipaddress
import socket

from captioning.errors import StorageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: IPv4 addresses embedded in IPv6, as in IPv6-only networks (NAT64, RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Whether an IP address is public: not private, loopback, link-local, multicast or reserved."""
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(_is_public(each) for each in _destinations(address))


def connect(host: str, port: int, *, timeout: float, allow_private: bool = False) -> socket.socket:
    """Connect to `host`. Raises `StorageError` (`forbidden`) when all its addresses are private, else `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    allowed = [entry for entry in found if allow_private or is_public(str(entry[4][0]))]
    if not allowed:
        shown = ", ".join(sorted({str(entry[4][0]) for entry in found}))
        raise StorageError(
            "forbidden",
            f"{host} is at {shown}, which is not on the public internet: such addresses are refused. "
            "If you trust the list, pass --set storage.allow_private=true",
        )
    failure: OSError | None = None
    for family, kind, protocol, _, address in allowed:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            failure = error
    assert failure is not None, "a name has an address"
    raise failure


def _is_public(address: Address) -> bool:
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_loopback or address.is_link_local
    )


def _destinations(address: Address) -> list[Address]:
    """The addresses that this one may lead to: an IPv6 address may map or embed an IPv4 one."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    embedded = [address.sixtofour, *(address.teredo or ())]
    return [address, *(each for each in embedded if each is not None)]
