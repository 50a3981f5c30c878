"""Listing of object stores: complete, in order, in parallel, and in bounded memory."""

import random
import threading
import time
from bisect import bisect_right

import fsspec
import pytest

from captioning.errors import StorageError
from captioning.local_files import FileInfo
from captioning.remote_listing import FolderPages, Page, Pages, walk
from captioning.retries import RetryPolicy


class Store(Pages):
    """Keys in pages of `size`, as in S3; counts requests, concurrent requests, and the items returned."""

    recursive = True

    def __init__(self, keys: list[str], size: int = 10, pause: float = 0.0) -> None:
        self.keys, self.size, self.pause = sorted(keys), size, pause
        self.requests: list[tuple[str, bool]] = []
        self.now = self.most = self.handed = 0
        self.lock = threading.Lock()
        self.failures: dict[int, Exception] = {}

    def page(self, folder: str, *, recursive: bool, token: str | None) -> Page:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.requests.append((folder, recursive))
            failure = self.failures.pop(len(self.requests), None)
        try:
            if failure is not None:
                raise failure
            time.sleep(self.pause)
            found = self._page(folder, recursive, token)
        finally:
            with self.lock:
                self.now -= 1
        with self.lock:
            self.handed += len(found.items)
        return found

    def _page(self, folder: str, recursive: bool, token: str | None) -> Page:
        items: dict[str, FileInfo | str] = {}
        start = bisect_right(self.keys, token or folder[:-1])
        for key in self.keys[start:]:
            if not key.startswith(folder):
                if key > folder:
                    break
                continue
            rest = key[len(folder) :]
            name = folder + rest.partition("/")[0] + "/" if "/" in rest and not recursive else key
            if name not in items and token is not None and name <= token:
                continue
            if name not in items and len(items) == self.size:
                return Page(tuple(items.values()), [*items][-1])
            if rest:
                items[name] = name if name.endswith("/") else FileInfo(name, len(name), "v")
        return Page(tuple(items.values()))


def listed(store: Pages, **given: object) -> list[str]:
    return [file.path for file in walk(store, given.pop("max_depth", None), **given)]  # type: ignore[arg-type]


def tree(seed: int) -> list[str]:
    draw = random.Random(seed)
    keys: set[str] = set()
    for _ in range(draw.randint(0, 600)):
        depth = draw.choice([0, 1, 1, 2, 3])
        parts = [draw.choice(["a", "a-b", "a0", "b", "é", "x y", "0"]) for _ in range(depth)]
        keys.add("/".join([*parts, f"{draw.randrange(400):03d}{draw.choice(['.jpg', '', '-'])}"]))
    return sorted(keys)


@pytest.mark.parametrize("seed", range(40))
def test_every_key_once_and_in_order(seed: int) -> None:
    keys = tree(seed)
    store = Store(keys, size=random.Random(seed).choice([1, 2, 7, 50, 1000]))
    assert listed(store) == keys
    for depth in (1, 2, 3):
        assert listed(store, max_depth=depth) == [key for key in keys if key.count("/") < depth]


def test_few_large_folders_are_listed_in_parallel() -> None:
    keys = [f"{year}/{number:05d}.jpg" for year in range(2000, 2016) for number in range(2000)]
    store = Store(keys, size=100, pause=0.005)
    assert listed(store) == keys
    assert store.most > 4
    # A page of everything for each folder before it is known to be large, and then its own pages.
    assert len(store.requests) < 16 * (20 + 2) + 16


def test_many_small_folders_are_not_listed_one_by_one() -> None:
    keys = [f"{number:05d}/{name}.jpg" for number in range(5000) for name in "ab"]
    store = Store(keys, size=1000)
    assert listed(store) == keys
    assert len(store.requests) <= 11


def test_a_small_prefix_is_one_request() -> None:
    store = Store(["a/b/c/d.jpg", "e.jpg"], size=1000)
    assert listed(store) == ["a/b/c/d.jpg", "e.jpg"]
    assert store.requests == [("", True)]


@pytest.mark.parametrize("layout", ["{0:06d}.jpg", "{1:03d}/{0:06d}.jpg", "{1:03d}/{2}/{0:06d}.jpg"])
def test_the_buffer_is_bounded(layout: str) -> None:
    keys = sorted(layout.format(number, number // 1200, number // 600 % 2) for number in range(60_000))
    store = Store(keys, size=20)
    ahead = []
    for count, _ in enumerate(walk(store, None), start=1):
        if count % 1000 == 0:
            ahead.append(store.handed - count)
    assert count == len(keys)
    # Some folders at each level, eight pages in each.
    assert max(ahead) < 3 * 20 * 10 * 20
    assert max(ahead) < len(keys) / 2


def test_an_abandoned_listing_sends_no_more_requests() -> None:
    store = Store([f"{number:06d}.jpg" for number in range(100_000)], size=100)
    walking = walk(store, None)
    assert next(walking).path == "000000.jpg"
    walking.close()
    assert len(store.requests) < 40


def test_excluded_folders_are_not_listed() -> None:
    keys = [
        f"{year}/{month:02d}/{number}.jpg" for year in (2023, 2024) for month in range(1, 13) for number in range(9)
    ]
    store = Store(keys)
    found = listed(store, max_depth=3, enter=lambda folder: folder in ("2024", "2024/02"))
    assert found == [key for key in sorted(keys) if key.startswith("2024/02/")]
    assert {folder for folder, _ in store.requests} == {"", "2024/", "2024/02/"}


def test_a_page_with_a_transient_failure_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioning.remote_listing.current_policy", lambda: RetryPolicy(attempts=3, seconds=5))
    monkeypatch.setattr("captioning.retries.time.sleep", lambda seconds: None)
    keys = [f"{year}/{number:05d}.jpg" for year in range(5) for number in range(200)]
    store = Store(keys, size=20)
    store.failures = {number: ConnectionResetError("reset") for number in (1, 5, 9, 13, 30)}
    assert listed(store) == keys
    store.failures = {number: PermissionError("no") for number in range(len(store.requests) + 7, 10**4)}
    with pytest.raises(StorageError) as caught:
        listed(store, where="s3://bucket/photos")
    assert caught.value.error_class == "forbidden"
    assert "s3://bucket/photos" in caught.value.message


def test_a_store_that_lists_folders() -> None:
    filesystem = fsspec.filesystem("memory")
    keys = tree(3)
    for key in keys:
        if not any(other.startswith(key + "/") for other in keys):
            filesystem.pipe_file(f"/listing/{key}", b"12")
    try:
        wanted = sorted(name.removeprefix("/listing/") for name in filesystem.find("/listing"))
        found = list(walk(FolderPages(filesystem, "/listing", lambda info: "v1"), None))
        assert [file.path for file in found] == wanted
        assert {(file.size, file.version) for file in found} == {(2, "v1")}
        assert listed(FolderPages(filesystem, "/listing", str), max_depth=1) == [n for n in wanted if "/" not in n]
    finally:
        filesystem.rm("/listing", recursive=True)
