"""Lists object stores: many prefixes in parallel, in the order of whole paths, in bounded memory.

    for file in walk(S3Pages(filesystem, bucket, "photos/"), None): …

Each prefix is listed recursively, a page at a time. If there are further pages and the first one has few
folders, these are listed in parallel instead. Pages that arrive ahead of their turn are buffered, a bounded
number of them. S3 has pages of a thousand keys; for any other fsspec store a page is a whole folder.
"""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from captioning.local_files import Enter, FileInfo
from captioning.retries import call_with_retries, current_policy
from captioning.storage_errors import storage_errors

#: Concurrent requests; folders whose listing is begun ahead of their turn; pages buffered for each.
_REQUESTS = 16
_FOLDERS_AHEAD = 16
_BUFFERED_PAGES = 8

#: A page with more folders than these has small folders, for which the recursive listing is quicker.
_FEW_FOLDERS = 16


@dataclass(frozen=True)
class Page:
    """Part of a listing, in order: files, and folders as strings that end with a slash.

    Paths are relative to the root. `next_token` is the continuation token, None on the last page.
    """

    items: tuple[FileInfo | str, ...]
    next_token: str | None = None


class Pages(ABC):
    """Listings of one store, below one root."""

    #: Whether the store can list everything below a folder, not only what is directly in it.
    recursive: bool

    @abstractmethod
    def page(self, folder: str, *, recursive: bool, token: str | None) -> Page:
        """One page of a folder (relative to the root, ending with a slash; "" for the root)."""


class S3Pages(Pages):
    """Objects of a bucket below a prefix, which is empty or ends with a slash; a thousand per page."""

    recursive = True
    page_size = 1000

    def __init__(self, filesystem: Any, bucket: str, prefix: str) -> None:
        self._filesystem, self._bucket, self._prefix = filesystem, bucket, prefix

    def page(self, folder: str, *, recursive: bool, token: str | None) -> Page:
        """One `ListObjectsV2` request."""
        request = {"Bucket": self._bucket, "Prefix": self._prefix + folder, "MaxKeys": self.page_size}
        request |= self._filesystem.req_kw
        if not recursive:
            request["Delimiter"] = "/"
        if token is not None:
            request["ContinuationToken"] = token
        response = self._filesystem.call_s3("list_objects_v2", **request)
        start = len(self._prefix)
        items: list[FileInfo | str] = [prefix["Prefix"][start:] for prefix in response.get("CommonPrefixes") or ()]
        for found in response.get("Contents") or ():
            path = found["Key"][start:]
            # Consoles mark an empty folder with a key that ends with a slash.
            if path and not path.endswith("/"):
                items.append(FileInfo(path, int(found.get("Size") or 0), str(found.get("ETag") or "").strip('"')))
        if not recursive:
            items.sort(key=_path)
        return Page(tuple(items), response.get("NextContinuationToken") if response.get("IsTruncated") else None)


class FolderPages(Pages):
    """Files of any fsspec store below a path: a page is a folder."""

    recursive = False

    def __init__(self, filesystem: Any, root: str, version: Callable[[dict[str, Any]], str]) -> None:
        self._filesystem, self._root, self._version = filesystem, root.rstrip("/"), version

    def page(self, folder: str, *, recursive: bool, token: str | None) -> Page:
        """The whole folder."""
        assert not recursive, "these stores list single folders"
        assert token is None, "a folder is one page"
        path = f"{self._root}/{folder}".rstrip("/")
        items: list[FileInfo | str] = []
        try:
            listed = self._filesystem.ls(path, detail=True)
        except FileNotFoundError:  # most stores have no empty folders: it is gone, or never existed
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
        return Page(tuple(sorted(items, key=_path)))


def walk(pages: Pages, max_depth: int | None, enter: Enter | None = None, *, where: str = "") -> Iterator[FileInfo]:
    """Every file, sorted by path; `max_depth` 1 means only those directly in the root.

    Folders for which `enter` is false are skipped. Raises what the store's client raises; `where` is
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
        self.policy = current_policy()  # the calling thread's: fetching threads have their own context
        self.stopped = False

    def begin(self, folder: str, depth: int | None) -> "_Folder":
        """Start to list a folder in the background, `depth` levels deep (None: all)."""
        return _Folder(folder, depth, _Stream(self, folder, recursive=depth is None and self.pages.recursive))

    def folder(self, begun: "_Folder") -> Iterator[FileInfo]:
        """The files of a folder whose listing was begun, and of its folders, in order."""
        stream = begun.stream
        if stream.recursive and stream.is_worth_splitting():
            stream = _Stream(self, begun.path, recursive=False)
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
            while folders >= _FOLDERS_AHEAD or (waiting and isinstance(waiting[0], FileInfo)):
                first = waiting.popleft()
                if isinstance(first, FileInfo):
                    yield first
                else:
                    folders -= 1
                    yield from self.folder(first)
            if len(waiting) > 1000 * _BUFFERED_PAGES:
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
    """The pages of one folder, fetched in the background: the first at once, then as many as are buffered."""

    def __init__(self, walk: _Walk, folder: str, *, recursive: bool) -> None:
        self.recursive = recursive
        self._walk, self._folder = walk, folder
        self._ready: deque[Page] = deque()
        self._token: str | None = None
        self._ended = self._splits = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._fetching = True
        walk.pool.submit(self._fetch)

    def is_worth_splitting(self) -> bool:
        """Whether its folders are better listed in parallel; waits for the first page."""
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
                self._request_next()
            yield from page.items

    def _wait(self) -> None:
        while not self._ready and self._failure is None and not self._ended:
            self._changed.wait()

    def _request_next(self) -> None:
        """Fetch the next page, unless it is being fetched or the buffer is full. Call with the lock held."""
        if not self._fetching and not self._ended and self._failure is None and len(self._ready) < _BUFFERED_PAGES:
            self._fetching = True
            self._walk.pool.submit(self._fetch)

    def _page(self, _: float | None) -> Page:
        with storage_errors(self._walk.where or self._folder, "list"):
            return self._walk.pages.page(self._folder, recursive=self.recursive, token=self._token)

    def _fetch(self) -> None:
        page = failure = None
        try:
            if not self._walk.stopped:
                page = call_with_retries(self._page, self._walk.policy)
        except BaseException as error:
            failure = error
        with self._changed:
            self._fetching = False
            first = self._token is None
            if page is None:
                self._failure, self._ended = failure, True
            else:
                self._ready.append(page)
                self._token, self._ended = page.next_token, page.next_token is None
                self._splits = self.recursive and first and not self._ended and _has_few_folders(page, self._folder)
                if not self._splits:
                    self._request_next()
            self._changed.notify_all()


def _has_few_folders(page: Page, folder: str) -> bool:
    start = len(folder)
    paths = (item.path[start:] for item in page.items if isinstance(item, FileInfo))
    return len({path.partition("/")[0] for path in paths if "/" in path}) <= _FEW_FOLDERS


def _path(item: FileInfo | str) -> str:
    return item if isinstance(item, str) else item.path
