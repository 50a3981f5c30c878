import errno
import os
import pickle
import socket
import threading
from contextvars import ContextVar
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from captioning.errors import StorageError, UsageError
from captioning.local_files import LocalFiles
from captioning.retries import RetryPolicy
from captioning.storage import Location, StorageSettings, escape_name, unescape_name
from captioning.storage_errors import classify, storage_errors


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path))


@pytest.fixture(params=["local", "memory"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return Location.parse(str(tmp_path))
    return Location.parse(f"memory://test-storage/{tmp_path.name}")


def test_a_file_is_written_read_listed_and_deleted(anywhere: Location) -> None:
    file = anywhere / "a" / "b.txt"
    assert not file.exists()
    assert anywhere.names() == []
    file.write_bytes(b"hello")
    assert file.exists()
    assert file.read_bytes() == b"hello"
    assert file.read_range(1, 3) == b"ell"
    assert file.read_range(3, 99) == b"lo"
    assert anywhere.names() == ["a"]
    assert (anywhere / "a").is_dir()
    assert not file.is_dir()
    assert [(info.path, info.size) for info in anywhere.walk()] == [("a/b.txt", 5)]
    with file.open_read() as reader:
        reader.seek(2)
        assert reader.read() == b"llo"
    file.delete()
    file.delete()
    assert not file.exists()
    with pytest.raises(StorageError):
        file.delete(missing_ok=False)


def test_create_leaves_an_existing_file_alone(anywhere: Location) -> None:
    assert (anywhere / "x").create_bytes(b"one", temp=anywhere / "tmp")
    assert not (anywhere / "x").create_bytes(b"two", temp=anywhere / "tmp")
    assert (anywhere / "x").read_bytes() == b"one"


def test_append_adds_lines(anywhere: Location) -> None:
    (anywhere / "log").append_bytes(b"one\n")
    (anywhere / "log").append_bytes(b"two\n")
    assert (anywhere / "log").read_text() == "one\ntwo\n"


def test_the_walk_is_in_the_order_of_whole_paths(anywhere: Location) -> None:
    names = ["a.jpg", "a/x.jpg", "a-b.jpg", "a0", "b/c/d", "B"]
    for name in names:
        (anywhere / name).write_bytes(b"x")
    assert [info.path for info in anywhere.walk()] == sorted(names)
    assert [info.path for info in anywhere.walk(max_depth=1)] == ["B", "a-b.jpg", "a.jpg", "a0"]


def test_download_copies_a_folder_and_a_file(anywhere: Location, tmp_path_factory: pytest.TempPathFactory) -> None:
    (anywhere / "sub" / "one").write_bytes(b"1")
    (anywhere / "two").write_bytes(b"2")
    target = tmp_path_factory.mktemp("copy")
    anywhere.download(target / "all")
    assert (target / "all" / "sub" / "one").read_bytes() == b"1"
    assert (target / "all" / "two").read_bytes() == b"2"
    (anywhere / "two").download(target)
    assert (target / "two").read_bytes() == b"2"
    with pytest.raises(StorageError, match=r"does not exist|No such"):
        (anywhere / "three").download(target)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / "x"
    file.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as caught:
        file.write_bytes(b"new", temp=root / "tmp")
    assert caught.value.error_class == "no_space"
    assert file.read_bytes() == b"old"
    assert [info.path for info in root.walk()] == ["x"]


def test_the_temporary_file_is_made_where_it_should_be(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(Path(a).parent), replace(a, b)))
    (root / "x").write_bytes(b"1", temp=root / "_run" / "tmp")
    assert seen == [root.local_path / "_run" / "tmp"]


def test_of_concurrent_creators_one_succeeds(root: Location) -> None:
    results: list[tuple[int, bool]] = []

    def create(number: int) -> None:
        results.append((number, (root / "x").create_bytes(b"%d" % number, temp=root / "tmp")))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number, won in results if won]
    assert len(results) == 8
    assert len(winners) == 1
    assert (root / "x").read_bytes() == b"%d" % winners[0]
    assert (root / "tmp").names() == []


def test_links_to_folders_are_followed_but_not_in_circles(root: Location, tmp_path: Path) -> None:
    (root / "real" / "x.jpg").write_bytes(b"1")
    os.symlink(tmp_path / "real", tmp_path / "link")
    os.symlink(tmp_path, tmp_path / "real" / "up")
    os.symlink(tmp_path / "gone", tmp_path / "dead.jpg")
    os.symlink("self.jpg", tmp_path / "self.jpg")
    assert [info.path for info in root.walk()] == ["dead.jpg", "link/x.jpg", "real/x.jpg", "self.jpg"]


def test_pipes_are_not_listed(root: Location, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list(root.walk()) == []


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("plain é 猫.jpg", "plain é 猫.jpg"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        (r"caf\xe9.jpg", r"caf\x5cxe9.jpg"),
        (r"back\slash", r"back\slash"),
        (r"\x5cxe9", r"\x5cx5cxe9"),
    ],
)
def test_names_are_escaped_and_come_back(name: str, escaped: str) -> None:
    assert escape_name(name) == escaped
    assert unescape_name(escaped) == name


def test_a_name_that_is_not_utf8_can_be_read_by_its_uri(root: Location) -> None:
    file = root / os.fsdecode(b"\xff\xe9.jpg")
    try:
        file.write_bytes(b"x")
    except StorageError:
        pytest.skip("this file system takes UTF-8 names only")
    assert file.uri.encode().endswith(rb"\xff\xe9.jpg")
    assert Location.from_uri(file.uri).read_bytes() == b"x"
    assert [(root / info.path) for info in root.walk()] == [file]


def test_parse_accepts_user_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    here = str(tmp_path)
    assert Location.parse("x/../y/").path == f"{here}/y"
    assert Location.parse("~/photos").path == "/home/someone/photos"
    assert Location.parse("file:///a/b").path == "/a/b"
    assert Location.parse("s3://bucket/p/").uri == "s3://bucket/p"
    assert (Location.parse("s3://bucket") / "a").uri == "s3://bucket/a"
    assert Location.parse("s3://bucket/a/b.jpg").name == "b.jpg"
    assert Location.parse("s3://bucket/a/b.jpg").parent.uri == "s3://bucket/a"
    assert (Location.parse("/") / "a").path == "/a"
    assert (Location.parse("memory://") / "a").uri == "memory://a"
    assert Location.parse("/a").parent.path == "/"
    assert not Location.parse("s3://bucket").is_local
    with pytest.raises(UsageError, match="path is empty"):
        Location.parse("")
    with pytest.raises(UsageError, match="::"):
        Location.parse("zip://x::s3://bucket/a.zip")
    with pytest.raises(UsageError, match="nosuch"):
        Location.parse("nosuch://bucket").exists()


def test_a_location_is_picklable() -> None:
    location = Location.parse("memory://a/b", StorageSettings(endpoint="http://localhost:1"))
    assert pickle.loads(pickle.dumps(location)) == location
    assert hash(pickle.loads(pickle.dumps(location))) == hash(location)


def test_failures_have_a_class_and_say_where(root: Location, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.jpg") as caught:
        (root / "none.jpg").read_bytes()
    assert caught.value.error_class == "missing"
    (root / "file").write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        (root / "file" / "below").check_writable()
    assert caught.value.error_class == "missing"
    with pytest.raises(StorageError) as caught:
        Location(f"{tmp_path}/a\0b").read_bytes()
    assert caught.value.error_class == "missing"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.error_class, again.message) == (caught.value.error_class, caught.value.message)


@pytest.mark.parametrize(
    ("error", "error_class", "transient"),
    [
        (PermissionError(errno.EACCES, "no"), "forbidden", False),
        (OSError(errno.EROFS, "read-only"), "forbidden", False),
        (OSError(errno.ENOSPC, "full"), "no_space", False),
        (OSError(errno.EBUSY, "SlowDown"), "throttled", True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "network", True),
        (TimeoutError(), "timeout", True),
        (OSError(errno.EIO, "broken disk"), "storage", False),
        (TypeError("a bug"), None, False),
        (ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject"), "forbidden", False),
        (ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject"), "missing", False),
        (ClientError({"Error": {"Code": "SlowDown"}}, "GetObject"), "throttled", True),
        (ClientError({"Error": {"Code": "InternalError"}}, "GetObject"), "network", True),
        (EndpointConnectionError(endpoint_url="http://localhost:1"), "network", True),
        (NoCredentialsError(), "credentials", False),
        (ClientError({"Error": {"Code": "ExpiredToken"}}, "GetObject"), "credentials", False),
        (ClientError({"Error": {"Code": "PermanentRedirect"}}, "GetObject"), "region", False),
        (
            ClientError({"Error": {"Code": "Strange"}, "ResponseMetadata": {"HTTPStatusCode": 507}}, "GetObject"),
            "network",
            True,
        ),
        (socket.gaierror(-2, "Name or service not known"), "network", True),
    ],
)
def test_errors_are_classified(error: Exception, error_class: str | None, transient: bool) -> None:
    assert classify(error) == (error_class, transient)


def test_a_failure_below_a_folder_names_the_file(root: Location) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", f"{root.path}/below/locked")
    expected = r"list .*Permission denied \(.*/below/locked\)"
    with pytest.raises(StorageError, match=expected) as caught, storage_errors(root.uri, "list"):
        raise error
    assert caught.value.error_class == "forbidden"


def test_check_writable_leaves_no_file(anywhere: Location) -> None:
    (anywhere / "deep" / "er").check_writable()
    assert list(anywhere.walk()) == [] if anywhere.is_dir() else True
    assert not (anywhere / "deep").exists()


class _Flaky(LocalFiles):
    """Fails a number of times with a transient error, then works."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left, self.error = failures, error

    def read(self, path: str, seconds: float | None = None) -> bytes:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return super().read(path)


def test_transient_failures_are_retried(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    current: ContextVar[RetryPolicy] = ContextVar("retry_policy", default=RetryPolicy(attempts=3))  # noqa: B039 - it is frozen
    monkeypatch.setattr("captioning.retries._current", current)
    monkeypatch.setattr("captioning.retries._FIRST_PAUSE", 0.0)
    (root / "x").write_bytes(b"1")
    flaky = _Flaky(2, ConnectionResetError("reset"))
    monkeypatch.setattr(Location, "_files", lambda self: flaky)
    assert (root / "x").read_bytes() == b"1"
    flaky.left = 3
    with pytest.raises(StorageError) as caught:
        (root / "x").read_bytes()
    assert (caught.value.error_class, caught.value.transient) == ("network", True)
    flaky.left, flaky.error = 1, PermissionError("no")
    with pytest.raises(StorageError):
        (root / "x").read_bytes()
    assert flaky.left == 0
