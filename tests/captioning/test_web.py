"""Images at web addresses: what is fetched, what is refused, and the limits."""

import socket
from typing import Any

import pytest

from captioning import web_addresses, web_connections, web_files
from captioning.errors import StorageError, UsageError
from captioning.storage import Location, StorageSettings
from captioning.web_addresses import is_public
from captioning.web_files import WebFiles
from tests.captioning.web_server import Handler, web_server

OPEN = StorageSettings(allow_http=True, allow_private=True)


@pytest.fixture(autouse=True)
def no_connections_left() -> Any:
    yield
    for idle in web_connections._idle.values():
        for connection in idle:
            connection.close()
    web_connections._idle.clear()


def read(url: str, storage: StorageSettings = OPEN) -> bytes:
    return WebFiles("http", storage).read(url)


def failed(url: str, storage: StorageSettings = OPEN, seconds: float | None = None) -> StorageError:
    with pytest.raises(StorageError) as caught:
        WebFiles("http", storage).read(url, seconds)
    return caught.value


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1"),
        *("64:ff9b:1::a00:1", "2001:0:a00:1::1", "::127.0.0.1", "no address", ""),
    ],
)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "127.1"])
def test_this_machine_is_refused_in_any_notation(host: str) -> None:
    error = failed(f"http://{host}:1/a.jpg?token=secret", StorageSettings(allow_http=True))
    assert (error.error_class, error.transient) in (("forbidden", False), ("missing", False))
    assert "secret" not in error.message


def test_a_name_that_resolves_to_a_private_address_is_refused(monkeypatch: Any) -> None:
    answers = [["93.184.215.14"], ["10.0.0.1"]]
    reached: list[Any] = []

    def lookup(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in answers[min(len(reached), 1)]]

    class Recorder(socket.socket):
        def connect(self, address: Any) -> None:
            reached.append(address)
            raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(web_addresses.socket, "getaddrinfo", lookup)
    monkeypatch.setattr(web_addresses.socket, "socket", Recorder)
    storage = StorageSettings(allow_http=True)
    assert failed("http://rebinding.example/a.jpg", storage).error_class == "network"
    assert reached == [("93.184.215.14", 80)]
    error = failed("http://rebinding.example/a.jpg", storage)
    assert error.error_class == "forbidden"
    assert "storage.allow_private=true" in error.message
    assert len(reached) == 1


def test_an_image_is_fetched_and_connections_are_reused() -> None:
    with web_server(lambda handler: handler.say(200, handler.path.encode(), Content_Type="text/html")) as server:
        for name in ("/a.jpg?x=1", "/b c é.jpg", "/d%20e.jpg", ""):
            got = read(server.url + name)
            assert got == (name.replace(" ", "%20").replace("é", "%C3%A9") or "/").encode()
        assert len({port for _, port in server.seen}) == 1
        assert WebFiles("http", OPEN).read_range(f"{server.url}/abcdef", 0, 3) == b"/ab"
        assert WebFiles("http", OPEN).read_range(f"{server.url}/abcdef", 2, 3) == b"bcd"
        assert Location.parse(f"{server.url}/x.jpg", OPEN).read_bytes() == b"/x.jpg"
        found = Location.parse(f"{server.url}/x.jpg", OPEN).info()
        assert found is not None
        assert (found.path, found.size) == ("x.jpg", 6)


def test_a_connection_closed_while_idle_is_replaced() -> None:
    def answer(handler: Handler) -> None:
        handler.say(200, b"image")
        handler.close_connection = True  # without having said so

    with web_server(answer) as server:
        assert [read(server.url) for _ in range(3)] == [b"image"] * 3


def test_a_range_and_a_chunked_response() -> None:
    def answer(handler: Handler) -> None:
        if handler.headers.get("Range"):
            assert handler.headers["Range"] == "bytes=2-4"
            return handler.say(206, b"cde", Content_Range="bytes 2-4/26")
        return handler.say(200, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", Transfer_Encoding="chunked", Content_Length="")

    with web_server(answer) as server:
        assert read(server.url) == b"abcde"
        assert WebFiles("http", OPEN).read_range(server.url, 2, 3) == b"cde"
        assert len({port for _, port in server.seen}) == 1


@pytest.mark.parametrize(
    ("status", "error_class", "transient"),
    [
        *((404, "missing", False), (410, "missing", False), (401, "forbidden", False), (403, "forbidden", False)),
        *((429, "throttled", True), (503, "throttled", True), (500, "network", True), (504, "timeout", True)),
        *((418, "storage", False), (204, "storage", False)),
    ],
)
def test_error_statuses_have_error_classes(status: int, error_class: str, transient: bool) -> None:
    with web_server(lambda handler: handler.say(status, b"an error page")) as server:
        error = failed(f"{server.url}/a.jpg?signature=secret")
    assert (error.error_class, error.transient) == (error_class, transient)
    assert "/a.jpg?…" in error.message
    assert "secret" not in error.message


def test_redirects_are_limited_and_each_is_checked(monkeypatch: Any) -> None:
    def answer(handler: Handler) -> None:
        step, _, rest = handler.path[1:].partition("/")
        if step == "out":
            handler.say(302, Location="http://10.0.0.1/latest/meta-data")
        elif step == "file":
            handler.say(302, Location="file:///etc/passwd")
        elif step == "lost":
            handler.say(302)
        elif int(step):
            handler.say(307, b"moved", Location=f"/{int(step) - 1}/{rest}")
        else:
            handler.say(200, b"image")

    with web_server(answer) as server:
        assert read(f"{server.url}/5/x") == b"image"
        assert "redirected 6 times" in failed(f"{server.url}/6/x").message
        assert failed(f"{server.url}/file").error_class == "forbidden"
        assert failed(f"{server.url}/lost").error_class == "storage"
        # The first address may be reached, the one it leads to may not.
        monkeypatch.setattr(web_addresses, "is_public", lambda text: text == "127.0.0.1")
        assert failed(f"{server.url}/out", StorageSettings(allow_http=True)).error_class == "forbidden"


def test_no_more_bytes_than_the_limit_are_read(monkeypatch: Any) -> None:
    monkeypatch.setattr(web_files, "MAX_BYTES", 1000)
    sent: list[int] = []

    def answer(handler: Handler) -> None:
        if handler.path == "/said":
            return handler.say(200, b"", Content_Length="1001")
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"400\r\n" + bytes(1024) + b"\r\n")
            sent.append(1024)

    with web_server(answer) as server:
        assert failed(f"{server.url}/said").error_class == "too_large"
        assert failed(f"{server.url}/endless").error_class == "too_large"
        with pytest.raises(StorageError, match="at most 1,000"):
            WebFiles("http", OPEN).read_range(f"{server.url}/endless", 0, 5000)
        assert len(WebFiles("http", OPEN).read_range(f"{server.url}/endless", 0, 500)) == 500


def test_a_truncated_or_endless_response_is_transient() -> None:
    def answer(handler: Handler) -> None:
        handler.close_connection = True
        if handler.path == "/short":
            return handler.say(200, b"half", Content_Length="8")
        if handler.path == "/none":
            return None
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"drop")
            handler.wfile.flush()

    with web_server(answer) as server:
        for path, error_class in (("short", "network"), ("none", "network"), ("slow", "timeout")):
            error = failed(f"{server.url}/{path}", seconds=0.3)
            assert (error.error_class, error.transient) == (error_class, True), path


def test_a_host_that_does_not_exist_or_does_not_listen() -> None:
    error = failed("http://no-such-host.invalid/a.jpg")
    assert error.error_class in ("missing", "network")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        error = failed(f"http://127.0.0.1:{free.getsockname()[1]}/a.jpg")
    assert (error.error_class, error.transient) == ("network", True)


@pytest.mark.parametrize(
    "url",
    ["http://", "http:///a.jpg", "http://[::1/a.jpg", "http://host:port/", "http://a\nb/", "http://" + "x" * 300 + "/"],
)
def test_invalid_addresses_are_errors_not_crashes(url: str) -> None:
    assert failed(url).error_class in ("missing", "network", "forbidden")


def test_nothing_is_fetched_without_the_setting() -> None:
    with web_server(lambda handler: handler.say(200, b"image")) as server:
        error = failed(f"{server.url}/a.jpg", StorageSettings())
        assert error.error_class == "forbidden"
        assert "storage.allow_http=true" in error.message
        assert server.seen == []


def test_nothing_is_written_or_listed() -> None:
    place = Location.parse("https://example.org/out?token=secret", OPEN)
    for operation in (
        lambda: place.write_bytes(b""),
        lambda: place.names(),
        lambda: place.is_dir(),
        lambda: list(place.walk()),
        lambda: place.delete(),
        lambda: place.check_writable(),
    ):
        with pytest.raises(UsageError, match="web address") as caught:
            operation()
        assert "secret" not in str(caught.value)
