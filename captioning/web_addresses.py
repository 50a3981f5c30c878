"""Which addresses of the internet may be connected to: public ones, unless a setting allows others.

A name is resolved here, every address that it has is judged, and the connection is made to a
judged address itself: a name that answers otherwise the second time reaches nothing. Knows
nothing of HTTP.
"""

import ipaddress
import socket

from captioning.errors import StorageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: IPv4 addresses as IPv6-only networks have them (RFC 6052).
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, multicast or reserved."""
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(_is_public(one) for one in _meant(address))


def connect(host: str, port: int, *, timeout: float, allow_private: bool = False) -> socket.socket:
    """A connection to `host`. Raises `StorageError` (`forbidden`) when all its addresses are private ones.

    Other failures are the operating system's `OSError`.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    allowed = [entry for entry in found if allow_private or is_public(str(entry[4][0]))]
    if not allowed:
        shown = ", ".join(sorted({str(entry[4][0]) for entry in found}))
        raise StorageError(
            "forbidden",
            f"{host} is at {shown}, which is not on the public internet: such addresses are refused, whoever names "
            "them. If you trust the list: --set storage.allow_private=true",
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


def _meant(address: Address) -> list[Address]:
    """The addresses that this one may lead to: an IPv6 one may stand for an IPv4 one, or hold one."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _TRANSLATED:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    held = [address.sixtofour, *(address.teredo or ())]
    return [address, *(one for one in held if one is not None)]
