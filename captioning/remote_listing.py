"""Listing object stores: many prefixes at once, in the order of whole paths, in bounded memory.

    for file in walk(S3Pages(filesystem, bucket, "photos/"), None): …

Each prefix is asked for everything below it, a page at a time. When that is one page it is done
with; when it is more and only few folders came, the folders are listed beside each other. What
comes ahead of its turn waits, a bounded number of pages. Knows S3's pages and those of any other
fsspec store, which are whole folders; knows nothing of what the files are.
"""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from captioning.local_files import Enter, FileInfo
from captioning.patience import current_patience, retrying
from captioning.storage_errors import storage_errors

#: Requests under way at once; folders that are begun before their turn; pages that wait in each.
_REQUESTS = 16
_AHEAD = 16
_PAGES = 8

#: A page in which more folders than these begin is of small folders: one after another is quicker.
_FEW_FOLDERS = 16


@dataclass(frozen=True)
class Page:
    """Part of a listing, in order: files, and folders as texts with a slash at their end.

    Paths are relative to the root. `following` is what the next page is asked for with, None at the end.
    """

    items: tuple[FileInfo | str, ...]
    following: str | None = None


class Pages(ABC):
    """Listings of one store, below one root."""

    #: Whether a page can hold everything below a folder, not only what is directly in it.
    deep: bool

    @abstractmethod
    def page(self, folder: str, *, deep: bool, following: str | None) -> Page:
        """One page of a folder (relative to the root, with a slash at its end, or nothing for the root)."""


class S3Pages(Pages):
    """Objects of a bucket below a prefix, which is empty or ends with a slash; a thousand a page."""

    deep = True
    page_size = 1000

    def __init__(self, filesystem: Any, bucket: str, prefix: str) -> None:
        self._filesystem, self._bucket, self._prefix = filesystem, bucket, prefix

    def page(self, folder: str, *, deep: bool, following: str | None) -> Page:
        """One `ListObjectsV2`."""
        given = {"Bucket": self._bucket, "Prefix": self._prefix + folder, "MaxKeys": self.page_size}
        given |= self._filesystem.req_kw
        if not deep:
            given["Delimiter"] = "/"
        if following is not None:
            given["ContinuationToken"] = following
        answer = self._filesystem.call_s3("list_objects_v2", **given)
        start = len(self._prefix)
        items: list[FileInfo | str] = [prefix["Prefix"][start:] for prefix in answer.get("CommonPrefixes") or ()]
        for found in answer.get("Contents") or ():
            path = found["Key"][start:]
            # A key with a slash at its end is what consoles make for an empty folder.
            if path and not path.endswith("/"):
                items.append(FileInfo(path, int(found.get("Size") or 0), str(found.get("ETag") or "").strip('"')))
        if not deep:
            items.sort(key=_name)
        return Page(tuple(items), answer.get("NextContinuationToken") if answer.get("IsTruncated") else None)


class FolderPages(Pages):
    """Files of any fsspec store below a path: a folder is a page."""

    deep = False

    def __init__(self, filesystem: Any, root: str, version: Callable[[dict[str, Any]], str]) -> None:
        self._filesystem, self._root, self._version = filesystem, root.rstrip("/"), version

    def page(self, folder: str, *, deep: bool, following: str | None) -> Page:
        """The whole folder."""
        assert not deep, "these stores list folders"
        assert following is None, "a folder is one page"
        path = f"{self._root}/{folder}".rstrip("/")
        items: list[FileInfo | str] = []
        try:
            listed = self._filesystem.ls(path, detail=True)
        except FileNotFoundError:  # there are no empty folders in most stores: it is gone, or never was
            return Page(())
        for found in listed:
            name = str(found["name"]).rstrip("/")
            relative = name[len(self._root) :].removeprefix("/")
            if name == path or not relative:
                continue
            if found.get("type") == "directory":
                items.append(relative + "/")
            else:
                items.append(FileInfo(relative, int(found.get("size") or 0), self._version(found)))
        return Page(tuple(sorted(items, key=_name)))


def walk(pages: Pages, max_depth: int | None, enter: Enter | None = None, *, where: str = "") -> Iterator[FileInfo]:
    """Every file, sorted by path; `max_depth` 1 means those directly in the root only.

    Folders that `enter` refuses are left out. Raises what the store's client raises; `where` is
    the root as messages show it.
    """
    pool = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="listing")
    walking = _Walk(pages, pool, enter, where)
    try:
        yield from walking.folder(walking.begin("", max_depth))
    finally:
        walking.stopped = True
        pool.shutdown(wait=False, cancel_futures=True)


class _Walk:
    def __init__(self, pages: Pages, pool: ThreadPoolExecutor, enter: Enter | None, where: str) -> None:
        self.pages, self.pool, self.enter, self.where = pages, pool, enter, where
        self.patience = current_patience()  # of the thread that asks: those that fetch have their own
        self.stopped = False

    def begin(self, folder: str, depth: int | None) -> "_Folder":
        """Start to list a folder, ahead of its turn. `depth` counts the levels that are wanted."""
        return _Folder(folder, depth, _Stream(self, folder, deep=depth is None and self.pages.deep))

    def folder(self, begun: "_Folder") -> Iterator[FileInfo]:
        """The files of a folder that was begun, and of those in it, in order."""
        stream = begun.stream
        if stream.deep and stream.is_worth_splitting():
            stream = _Stream(self, begun.path, deep=False)
        waiting: deque[FileInfo | _Folder] = deque()
        folders = 0
        for item in stream.items():
            if isinstance(item, FileInfo):
                if folders:
                    waiting.append(item)
                else:
                    yield item
            elif (begun.depth is None or begun.depth > 1) and (self.enter is None or self.enter(item[:-1])):
                waiting.append(self.begin(item, None if begun.depth is None else begun.depth - 1))
                folders += 1
            while folders >= _AHEAD or (waiting and isinstance(waiting[0], FileInfo)):
                first = waiting.popleft()
                if isinstance(first, FileInfo):
                    yield first
                else:
                    folders -= 1
                    yield from self.folder(first)
            if len(waiting) > 1000 * _PAGES:
                yield from self._drain(waiting)
                folders = 0
        yield from self._drain(waiting)

    def _drain(self, waiting: "deque[FileInfo | _Folder]") -> Iterator[FileInfo]:
        while waiting:
            first = waiting.popleft()
            if isinstance(first, FileInfo):
                yield first
            else:
                yield from self.folder(first)


@dataclass(frozen=True)
class _Folder:
    path: str
    depth: int | None
    stream: "_Stream"


class _Stream:
    """The pages of one folder, fetched in the background: at once the first, then as many as may wait."""

    def __init__(self, walk: _Walk, folder: str, *, deep: bool) -> None:
        self.deep = deep
        self._walk, self._folder = walk, folder
        self._ready: deque[Page] = deque()
        self._following: str | None = None
        self._ended = self._splits = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._fetching = True
        walk.pool.submit(self._fetch)

    def is_worth_splitting(self) -> bool:
        """Whether its folders are better listed beside each other: waits for the first page."""
        with self._changed:
            self._wait()
            return self._splits

    def items(self) -> Iterator[FileInfo | str]:
        """All items, in order."""
        while True:
            with self._changed:
                self._wait()
                if self._failure is not None:
                    raise self._failure
                if not self._ready:
                    return
                page = self._ready.popleft()
                self._go_on()
            yield from page.items

    def _wait(self) -> None:
        while not self._ready and self._failure is None and not self._ended:
            self._changed.wait()

    def _go_on(self) -> None:
        """Ask for the next page, unless it is being fetched, or enough wait. Under the lock."""
        if not self._fetching and not self._ended and self._failure is None and len(self._ready) < _PAGES:
            self._fetching = True
            self._walk.pool.submit(self._fetch)

    def _page(self, _: float | None) -> Page:
        with storage_errors(self._walk.where or self._folder, "list"):
            return self._walk.pages.page(self._folder, deep=self.deep, following=self._following)

    def _fetch(self) -> None:
        page = failure = None
        try:
            if not self._walk.stopped:
                page = retrying(self._page, self._walk.patience)
        except BaseException as error:
            failure = error
        with self._changed:
            self._fetching = False
            first = self._following is None
            if page is None:
                self._failure, self._ended = failure, True
            else:
                self._ready.append(page)
                self._following, self._ended = page.following, page.following is None
                self._splits = self.deep and first and not self._ended and _has_few_folders(page, self._folder)
                if not self._splits:
                    self._go_on()
            self._changed.notify_all()


def _has_few_folders(page: Page, folder: str) -> bool:
    start = len(folder)
    paths = (item.path[start:] for item in page.items if isinstance(item, FileInfo))
    return len({path.partition("/")[0] for path in paths if "/" in path}) <= _FEW_FOLDERS


def _name(item: FileInfo | str) -> str:
    return item if isinstance(item, str) else item.path
