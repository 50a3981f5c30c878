"""HTTP GET requests over pooled connections, to permitted addresses only (`web_addresses`).

Redirects and the content of responses are left to `web_files`.
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

#: Seconds without data after which a connection is given up.
IDLE_TIMEOUT = 20.0
#: The most idle connections that are kept open.
_MAX_IDLE = 32

_Key = tuple[int, str, str, int, bool]


@dataclass(frozen=True)
class Endpoint:
    """Where a request goes. `host` is as DNS takes it, `target` the quoted path with its query."""

    scheme: str
    host: str
    port: int
    target: str
    allow_private: bool

    @property
    def key(self) -> _Key:
        """The key of the connection pool. A forked process uses none of its parent's connections."""
        return os.getpid(), self.scheme, self.host, self.port, self.allow_private


@contextmanager
def get(endpoint: Endpoint, headers: Mapping[str, str], deadline: float) -> Iterator[http.client.HTTPResponse]:
    """The response to a GET, which must be complete at `deadline` (of `time.monotonic`).

    The connection is kept if the response is read to its end. Raises `StorageError` for an address
    that is not permitted, else what `http.client` and the operating system raise.
    """
    connection, reused = _acquire(endpoint)
    try:
        try:
            response = _request(connection, endpoint.target, headers, deadline)
        except (http.client.RemoteDisconnected, ConnectionError, http.client.CannotSendRequest):
            connection.close()
            if not reused:
                raise
            # The server closed it while it was idle, which is no failure.
            connection = _new(endpoint)
            response = _request(connection, endpoint.target, headers, deadline)
        yield response
        if response.length == 0:
            response.close()  # http.client does not notice by itself that it was read to its end
        if response.isclosed() and not response.will_close:
            _release(endpoint.key, connection)
            return
    except BaseException:
        connection.close()
        raise
    connection.close()


def remaining(deadline: float) -> float:
    """The timeout of the next socket operation in seconds. Raises `TimeoutError` after `deadline`."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the whole answer took too long")
    return min(seconds, IDLE_TIMEOUT)


class _Http(http.client.HTTPConnection):
    """A connection to permitted addresses only."""

    def __init__(self, host: str, port: int, allow_private: bool) -> None:
        super().__init__(host, port, timeout=IDLE_TIMEOUT)
        self._allow_private = allow_private

    def connect(self) -> None:
        self.sock = connect(self.host, self.port, timeout=IDLE_TIMEOUT, allow_private=self._allow_private)


class _Https(_Http):
    """The same over TLS; the certificate must be that of the host name."""

    def connect(self) -> None:
        super().connect()
        self.sock = _context().wrap_socket(self.sock, server_hostname=self.host)


_idle: dict[_Key, list[_Http]] = {}
_lock = threading.Lock()
_contexts: list[ssl.SSLContext] = []


def _context() -> ssl.SSLContext:
    with _lock:
        if not _contexts:
            _contexts.append(ssl.create_default_context())
        return _contexts[0]


def _new(endpoint: Endpoint) -> _Http:
    kind = _Https if endpoint.scheme == "https" else _Http
    return kind(endpoint.host, endpoint.port, endpoint.allow_private)


def _acquire(endpoint: Endpoint) -> tuple[_Http, bool]:
    """A connection, and whether it was used before."""
    with _lock:
        idle = _idle.get(endpoint.key)
        if idle:
            connection = idle.pop()
            if not idle:
                del _idle[endpoint.key]
            return connection, True
    return _new(endpoint), False


def _release(key: _Key, connection: _Http) -> None:
    with _lock:
        _idle.setdefault(key, []).append(connection)
        if sum(map(len, _idle.values())) <= _MAX_IDLE:
            return
        oldest = next(iter(_idle))
        surplus = _idle[oldest].pop(0)
        if not _idle[oldest]:
            del _idle[oldest]
    surplus.close()


def _request(connection: _Http, target: str, headers: Mapping[str, str], deadline: float) -> http.client.HTTPResponse:
    if connection.sock is not None:
        connection.sock.settimeout(remaining(deadline))
    connection.request("GET", target, headers=dict(headers))
    connection.sock.settimeout(remaining(deadline))
    return connection.getresponse()
