"""Files at web addresses (http, https), fetched from the public internet only.

Bytes, redirects and time are bounded; every redirect is checked like the first address. Headers that describe
the content are ignored, and no proxy is used, for it would resolve names itself. The messages of `StorageError`
show neither passwords nor queries, which may be signatures.
"""

import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from captioning.errors import StorageError, UsageError
from captioning.local_files import FileInfo
from captioning.remote_files import RemoteFiles, StorageSettings
from captioning.web_connections import Endpoint, get, remaining

#: Larger files are not read: sixteen may be in memory at the same time.
MAX_BYTES = 256 << 20
MAX_REDIRECTS = 5
#: Seconds for a whole response, redirects included, unless the caller sets another limit.
_TIMEOUT = 60.0

#: `identity`: no compressed response, of which a few bytes may unpack to gigabytes.
HEADERS = {"User-Agent": "captioning", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
_REDIRECTS = (301, 302, 303, 307, 308)
_STATUS = {401: "forbidden", 403: "forbidden", 404: "missing", 410: "missing", 408: "timeout", 429: "throttled"}
_STATUS |= {500: "network", 502: "network", 503: "throttled", 504: "timeout"}
_TRANSIENT = ("timeout", "throttled", "network")
_SAFE = "/%:@!$&'()*+,;=~-._"
_CONTROLS = re.compile(r"[\x00-\x20\x7f]")

T = TypeVar("T")


class WebFiles(RemoteFiles):
    """The operations of `storage.Location` on web addresses: reading only."""

    def __init__(self, protocol: str, storage: StorageSettings) -> None:
        self.protocol, self._fs = protocol, _NoStore()
        self._allow_http, self._allow_private = storage.allow_http, storage.allow_private

    def read(self, uri: str, seconds: float | None = None) -> bytes:
        """The content of the file."""
        return self._get(uri, None, seconds, lambda response, deadline: _read(response, MAX_BYTES + 1, deadline))

    def read_range(self, uri: str, offset: int, length: int, seconds: float | None = None) -> bytes:
        """`length` bytes from `offset`, fewer at the end of the file."""
        if length == 0:
            return b""
        limit = min(length, MAX_BYTES + 1)
        if offset == 0:
            # Without a range: the server may not support them, and the file may be shorter.
            return self._get(uri, None, seconds, lambda response, deadline: _read(response, limit, deadline))

        def read(response: http.client.HTTPResponse, deadline: float) -> bytes:
            if response.status != 206:
                # The server does not support ranges: skip the bytes before this one.
                _read(response, offset, deadline, keep=False)
            return _read(response, limit, deadline)

        return self._get(uri, f"bytes={offset}-{offset + length - 1}", seconds, read)

    def open_read(self, uri: str) -> BinaryIO:
        """The content of the file, in memory."""
        return io.BytesIO(self.read(uri))

    def info(self, uri: str) -> FileInfo | None:
        """Size of the file (0 if the server does not say); None for a missing file."""
        try:
            size = self._get(uri, None, None, lambda response, _: response.length or 0)
        except StorageError as error:
            if error.error_class == "missing":
                return None
            raise
        return FileInfo(uri.rpartition("/")[2], size, "")

    def _path(self, uri: str) -> str:
        # Every operation that is not overridden here needs the path before it calls the store.
        raise UsageError(
            f"{shown(uri)} is a web address, which cannot be written to or listed: name images in a text list."
        )

    def _endpoint(self, uri: str) -> Endpoint:
        """Where to connect, and what to request there."""
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname or "", parts.port
            host = host if host.isascii() else host.encode("idna").decode()
        except ValueError as error:
            raise StorageError("missing", f"{shown(uri)} is not a valid web address ({error}).") from None
        scheme = parts.scheme.lower()
        if not host or scheme not in ("http", "https") or _CONTROLS.search(host):
            raise StorageError("missing", f"{shown(uri)} is not an http or https address with a host.")
        # Text that is quoted already stays as it is: a % is not quoted again.
        path = quote(parts.path.encode("utf-8", "surrogateescape"), safe=_SAFE)
        query = quote(parts.query.encode("utf-8", "surrogateescape"), safe=_SAFE + "?[]{}|\\^`")
        target = urlunsplit(("", "", path or "/", query, ""))
        return Endpoint(scheme, host, port or (443 if scheme == "https" else 80), target, self._allow_private)

    def _get(
        self,
        uri: str,
        range_header: str | None,
        seconds: float | None,
        read: Callable[[http.client.HTTPResponse, float], T],
    ) -> T:
        """The result of `read`, called with the response to which `uri` leads and the deadline."""
        if not self._allow_http:
            raise StorageError(
                "forbidden", f"{shown(uri)} is a web address: fetching it needs --set storage.allow_http=true"
            )
        deadline = time.monotonic() + (seconds or _TIMEOUT)
        headers = HEADERS if range_header is None else {**HEADERS, "Range": range_header}
        current = uri
        for _ in range(MAX_REDIRECTS + 1):
            with _web_errors(uri), get(self._endpoint(current), headers, deadline) as response:
                if response.status not in _REDIRECTS:
                    _check_status(uri, response)
                    return read(response, deadline)
                current = _redirect_target(current, response.getheader("Location"), uri)
        raise StorageError("storage", f"{shown(uri)} was redirected {MAX_REDIRECTS + 1} times, more than allowed.")


class _NoStore:
    """Takes the place of a file system object: it has every attribute, and none is ever called."""

    def __getattr__(self, name: str) -> None:
        return None


def shown(uri: str) -> str:
    """A web address for use in messages: without user, password, query and fragment."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an invalid web address"
    text = f"{parts.scheme}://{host}{port}{parts.path}" + ("?…" if parts.query else "")
    return text.encode("utf-8", "backslashreplace").decode()


def _read(response: http.client.HTTPResponse, limit: int, deadline: float, *, keep: bool = True) -> bytes:
    """`limit` bytes, fewer where the response ends."""
    promised = response.length
    if promised is not None and min(promised, limit) > MAX_BYTES:
        raise _too_large(promised)
    pieces: list[bytes] = []
    count = 0
    while count < limit:
        remaining(deadline)
        piece = response.read1(min(1 << 16, limit - count))
        if not piece:
            break
        count += len(piece)
        if keep:
            pieces.append(piece)
    if count > MAX_BYTES and keep:
        raise _too_large(count)
    if promised is not None and count < min(limit, promised):
        raise http.client.IncompleteRead(b"", promised - count)
    return b"".join(pieces)


def _too_large(size: int) -> StorageError:
    return StorageError(
        "too_large", f"The file has {size:,} bytes or more; at most {MAX_BYTES:,} are read from the web."
    )


def _redirect_target(current: str, location: str | None, first: str) -> str:
    if not location:
        raise StorageError("storage", f"{shown(first)} was redirected without saying where.")
    target = urljoin(current, location)
    if urlsplit(target).scheme.lower() not in ("http", "https"):
        raise StorageError("forbidden", f"{shown(first)} was redirected to an address that is not http or https.")
    return target


def _check_status(uri: str, response: http.client.HTTPResponse) -> None:
    status = response.status
    if status in (200, 206, 203):
        return
    error_class = _STATUS.get(status, "network" if status >= 500 else "storage")
    reason = re.sub(r"[^\x20-\x7e]", "?", response.reason or "")[:80]
    transient = error_class in _TRANSIENT
    raise StorageError(error_class, f"{shown(uri)} answered {status} {reason}.".replace(" .", "."), transient=transient)


@contextmanager
def _web_errors(uri: str) -> Iterator[None]:
    """Turn failures inside into a `StorageError` about `uri`."""
    try:
        yield
    except (StorageError, UsageError):
        raise
    except TimeoutError as error:
        raise StorageError("timeout", f"{shown(uri)} did not answer in time: {error}.", transient=True) from error
    except ssl.SSLCertVerificationError as error:
        raise StorageError("forbidden", f"{shown(uri)} has no valid certificate: {error.verify_message}.") from error
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            raise StorageError("missing", f"{shown(uri)} leads to a host that does not exist.") from error
        raise StorageError("network", f"{shown(uri)}: no name server answers.", transient=True) from error
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise StorageError("network", f"{shown(uri)} could not be reached: {reason}.", transient=True) from error
    except http.client.HTTPException as error:
        what = type(error).__name__
        raise StorageError(
            "network", f"{shown(uri)} gave an incomplete or invalid answer ({what}).", transient=True
        ) from error
