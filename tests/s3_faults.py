"""A proxy in front of an S3 server that injects faults: errors, resets, slowness, refused keys."""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from captioning.storage import StorageSettings

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}
#: S3's errors by status and code.
_MESSAGES = {
    "InternalError": "We encountered an internal error. Please try again.",
    "SlowDown": "Please reduce your request rate.",
    "AccessDenied": "Access Denied",
    "NoSuchKey": "The specified key does not exist.",
    "InvalidAccessKeyId": "The AWS Access Key Id you provided does not exist in our records.",
    "PermanentRedirect": "The bucket you are attempting to access must be addressed using the specified endpoint.",
    "AuthorizationHeaderMalformed": "The authorization header is malformed; the region 'us-east-1' is wrong; "
    "expecting 'eu-west-3'",
}


@dataclass
class Faults:
    """The injected faults; may be changed while the proxy runs. `seen` counts faults by kind, and connections."""

    rate: float = 0.0
    """The share of requests with a transient fault."""
    slow_rate: float = 0.0
    """The share of answers that arrive in small pieces."""
    key_id: str = "testing"
    """The only accepted access key."""
    forbidden: set[str] = field(default_factory=set)
    """Keys (BUCKET/KEY) that may not be read."""
    missing: set[str] = field(default_factory=set)
    """Keys that are listed but missing."""
    other_region: set[str] = field(default_factory=set)
    """Buckets in another region."""
    revoke_after: int | None = None
    """Credentials expire after this many further reads of objects."""
    seed: int = 1
    seen: Counter[str] = field(default_factory=Counter)


@contextmanager
def faulty(storage: StorageSettings, faults: Faults) -> Iterator[StorageSettings]:
    """Settings that reach the store of `storage` through the proxy."""
    assert storage.endpoint is not None
    upstream = urlsplit(storage.endpoint)
    chance = random.Random(faults.seed)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.upstream = http.client.HTTPConnection(upstream.hostname or "", upstream.port)
            with lock:
                faults.seen["connections"] += 1

        def log_message(self, *_: object) -> None:
            return

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
            refusal = self.refusal(bucket, f"{bucket}/{key}", key)
            if refusal is not None:
                return self.answer(*refusal)
            with lock:
                kind = chance.choice(["500", "503", "reset", "cut"]) if chance.random() < faults.rate else None
                slow = chance.random() < faults.slow_rate
                faults.seen[kind or "none"] += 1
                faults.seen["slow"] += slow
            if kind == "500":
                return self.answer(500, "InternalError")
            if kind == "503":
                return self.answer(503, "SlowDown")
            if kind == "reset":
                return self.reset()
            return self.forward(body, cut=kind == "cut", slow=slow)

        def refusal(self, bucket: str, path: str, key: str) -> tuple[int, str] | None:
            with lock:
                if self.command == "GET" and key and faults.revoke_after is not None:
                    faults.revoke_after -= 1
                revoked = faults.revoke_after is not None and faults.revoke_after < 0
            signed = self.headers.get("Authorization", "")
            if revoked or f"Credential={faults.key_id}/" not in signed:
                return 403, "InvalidAccessKeyId"
            if bucket in faults.other_region:
                return 400, "AuthorizationHeaderMalformed"
            if self.command == "GET" and path in faults.forbidden:
                return 403, "AccessDenied"
            if self.command == "GET" and path in faults.missing:
                return 404, "NoSuchKey"
            return None

        def answer(self, status: int, code: str) -> None:
            body = f"<Error><Code>{code}</Code><Message>{_MESSAGES[code]}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def forward(self, body: bytes, *, cut: bool, slow: bool) -> None:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP | {"expect"}}
            self.upstream.request(self.command, self.path, body or None, {**headers, "Content-Length": str(len(body))})
            answer = self.upstream.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            length = len(data) if self.command != "HEAD" else int(answer.getheader("Content-Length") or 0)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if cut and self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                return self.reset()
            if self.command == "HEAD":
                return None
            for start in range(0, len(data), max(1, len(data) // 5)) if slow else ():
                self.wfile.write(data[start : start + max(1, len(data) // 5)])
                self.wfile.flush()
                time.sleep(0.05)
            if not slow:
                self.wfile.write(data)
            return None

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            return  # a client that went away

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield StorageSettings(endpoint=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent_endpoint() -> Iterator[StorageSettings]:
    """A server that accepts connections and never answers."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as server:
        yield StorageSettings(endpoint=f"http://127.0.0.1:{server.getsockname()[1]}")
