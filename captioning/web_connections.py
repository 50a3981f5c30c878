"""Requests over HTTP connections that are kept and used again, to judged addresses only.

Knows connections and time; knows nothing of what is asked for, nor of redirects.
"""

import http.client
import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from captioning.web_addresses import connect

#: Seconds that the other side may be silent.
SILENCE = 20.0
#: Connections that wait to be used again.
_KEPT = 32

_Key = tuple[int, str, str, int, bool]


@dataclass(frozen=True)
class Address:
    """Where a request goes. `host` is as the name service takes it, `target` quoted, with its query."""

    scheme: str
    host: str
    port: int
    target: str
    allow_private: bool

    @property
    def key(self) -> _Key:
        """What connections are shared by. A forked process has none of its parent's."""
        return os.getpid(), self.scheme, self.host, self.port, self.allow_private


@contextmanager
def ask(address: Address, headers: Mapping[str, str], until: float) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET, which must be there at `until` (of `time.monotonic`).

    Its connection is kept when the answer was read to its end. Raises `StorageError` for an address
    that is refused, else what `http.client` and the operating system raise.
    """
    connection, used = _take(address)
    try:
        try:
            answer = _request(connection, address.target, headers, until)
        except (http.client.RemoteDisconnected, ConnectionError, http.client.CannotSendRequest):
            connection.close()
            if not used:
                raise
            # It was closed while it waited, which says nothing of the server.
            connection = _new(address)
            answer = _request(connection, address.target, headers, until)
        yield answer
        if answer.length == 0:
            answer.close()  # read to its end, which it does not notice by itself
        if answer.isclosed() and not answer.will_close:
            _keep(address.key, connection)
            return
    except BaseException:
        connection.close()
        raise
    connection.close()


def left(until: float) -> float:
    """Seconds that the other side may be silent now. Raises `TimeoutError` when `until` is over."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the answer took too long as a whole")
    return min(seconds, SILENCE)


class _Http(http.client.HTTPConnection):
    """A connection to judged addresses only."""

    def __init__(self, host: str, port: int, allow_private: bool) -> None:
        super().__init__(host, port, timeout=SILENCE)
        self._allow_private = allow_private

    def connect(self) -> None:
        self.sock = connect(self.host, self.port, timeout=SILENCE, allow_private=self._allow_private)


class _Https(_Http):
    """The same, encrypted; the certificate must be the name's."""

    def connect(self) -> None:
        super().connect()
        self.sock = _context().wrap_socket(self.sock, server_hostname=self.host)


_waiting: dict[_Key, list[_Http]] = {}
_lock = threading.Lock()
_contexts: list[ssl.SSLContext] = []


def _context() -> ssl.SSLContext:
    with _lock:
        if not _contexts:
            _contexts.append(ssl.create_default_context())
        return _contexts[0]


def _new(address: Address) -> _Http:
    kind = _Https if address.scheme == "https" else _Http
    return kind(address.host, address.port, address.allow_private)


def _take(address: Address) -> tuple[_Http, bool]:
    """A connection, and whether it was used before."""
    with _lock:
        waiting = _waiting.get(address.key)
        if waiting:
            connection = waiting.pop()
            if not waiting:
                del _waiting[address.key]
            return connection, True
    return _new(address), False


def _keep(key: _Key, connection: _Http) -> None:
    with _lock:
        _waiting.setdefault(key, []).append(connection)
        if sum(map(len, _waiting.values())) <= _KEPT:
            return
        oldest = next(iter(_waiting))
        surplus = _waiting[oldest].pop(0)
        if not _waiting[oldest]:
            del _waiting[oldest]
    surplus.close()


def _request(connection: _Http, target: str, headers: Mapping[str, str], until: float) -> http.client.HTTPResponse:
    if connection.sock is not None:
        connection.sock.settimeout(left(until))
    connection.request("GET", target, headers=dict(headers))
    connection.sock.settimeout(left(until))
    return connection.getresponse()
