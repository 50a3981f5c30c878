"""A web server of this machine that answers as a test tells it to."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Hands every GET to the function that the server was made with."""

    protocol_version = "HTTP/1.1"
    connections: set[int]

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.client_address[1]))
        self.server.answer(self)

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        """An answer with these headers (`_` for `-`) and a length unless one is given."""
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    seen: list[tuple[str, int]]
    answer: Callable[[Handler], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args: object) -> None:
        pass


@contextmanager
def web_server(answer: Callable[[Handler], None]) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.seen, server.answer = [], answer
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
