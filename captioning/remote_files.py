"""Objects of any store that fsspec supports (S3, GCS, Azure, memory …), without stale listings.

Each process has one file system object per store, shared by its threads, so that connections are reused
(fsspec's own registry keeps one per thread, and every new one connects again). This module raises the
clients' own errors; `storage` turns them into `StorageError` and retries. fsspec is imported with the first
store, so that runs on local files alone do without it.
"""

import inspect
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from captioning.config import settings
from captioning.errors import UsageError
from captioning.local_files import Enter, FileInfo
from captioning.remote_listing import FolderPages, Pages, S3Pages, walk
from captioning.retries import INTERACTIVE, current_policy
from captioning.storage_errors import classify

#: The most open connections to one store.
MAX_CONNECTIONS = 64

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}


@settings
class StorageSettings:
    """How object stores are accessed. Local files need none of it."""

    endpoint: str | None = None
    """URL of an S3-compatible (or GCS-compatible) service."""
    profile: str | None = None
    """Name of a profile in the AWS configuration files."""
    anonymous: bool = False
    """Read public buckets without credentials."""
    requester_pays: bool = False
    """Pay for reading buckets that are configured as requester pays."""
    allow_http: bool = False
    """Fetch web addresses (http and https) that lists and tables of images contain."""
    allow_private: bool = False
    """Fetch them also from this machine and from private networks: only for lists that you trust completely."""

    def __post_init__(self) -> None:
        if self.endpoint and not self.endpoint.lower().startswith(("http://", "https://")):
            raise ValueError(f"endpoint is {self.endpoint}: it must be a URL such as http://localhost:9000")
        if self.endpoint and "@" in urlsplit(self.endpoint).netloc:
            # It would be written to run.json and shown in messages.
            raise ValueError("endpoint must not contain a user or a password: set keys in the environment or a profile")


class RemoteFiles:
    """The operations of `storage.Location` on one fsspec protocol."""

    def __init__(self, protocol: str, storage: StorageSettings) -> None:
        self.protocol = protocol
        self._fs = _filesystem(protocol, storage)
        # By default s3fs asks for an object's size before it reads it, to read large ones in pieces: a second request
        # per image, whose response does not say why it failed.
        cat_file = getattr(self._fs, "_cat_file", None)
        parameters = inspect.signature(cat_file).parameters if cat_file is not None else {}
        self._read_options = {"max_concurrency": 1} if "max_concurrency" in parameters else {}

    def read(self, uri: str, seconds: float | None = None) -> bytes:
        """The content of the object. Raises `TimeoutError` after `seconds`."""
        return self._cat(uri, None, None, seconds)

    def read_range(self, uri: str, offset: int, length: int, seconds: float | None = None) -> bytes:
        """`length` bytes from `offset`, fewer at the end of the object. Raises `TimeoutError` after `seconds`."""
        if length == 0:
            return b""
        return self._cat(uri, offset, offset + length, seconds)

    def open_read(self, uri: str) -> BinaryIO:
        """Open a seekable binary file with read-ahead."""
        return cast(BinaryIO, self._fs.open(self._path(uri), "rb"))

    def write(self, uri: str, data: bytes, temp_folder: str | None) -> None:  # noqa: ARG002 - one PUT needs no temporary file
        """Put the object in one step: readers see the old content or the new, never a part."""
        self._fs.pipe_file(self._path(uri), data)

    def create(self, uri: str, data: bytes, temp_folder: str | None) -> bool:
        """As `write`, but only if the object does not exist; returns whether it was written.

        Of two writers at the same moment only one succeeds where the store has conditional writes (S3);
        elsewhere the later one wins.
        """
        if self.info(uri) is not None:
            return False
        if self.protocol not in ("s3", "s3a"):
            self.write(uri, data, temp_folder)
            return True
        try:
            self._fs.pipe_file(self._path(uri), data, mode="create")
        except FileExistsError:
            return False
        return True

    @contextmanager
    def open_write(self, uri: str) -> Iterator[BinaryIO]:
        """Write an object in pieces (a multipart upload), which is completed when the body has ended."""
        file = self._fs.open(self._path(uri), "wb")
        try:
            yield cast(BinaryIO, file)
        except BaseException:
            # Closing the file would complete the upload.
            if hasattr(file, "discard"):
                file.discard()
            file.closed = True
            raise
        file.close()

    def put_if(self, uri: str, data: bytes, version: str | None) -> str | None:
        """Put the object on S3 if its ETag is still `version`, or if it does not exist (None).

        Returns the new ETag, or None when the condition does not hold.
        """
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": f'"{version}"'}
        bucket, key, _ = self._fs.split_path(self._path(uri))
        try:
            answer = self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        except (FileExistsError, FileNotFoundError):
            return None
        except OSError as error:
            if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return None
            raise
        return str(answer["ETag"]).strip('"')

    def abort_uploads(self, uri: str) -> int:
        """Abort the multipart uploads in progress of objects whose URI begins with `uri`; how many there were."""
        if self.protocol not in ("s3", "s3a"):
            return 0
        bucket, prefix, _ = self._fs.split_path(self._path(uri))
        found = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix).get("Uploads", [])
        for upload in found:
            self._fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        return len(found)

    def delete(self, uri: str) -> None:
        """Remove the object, if it exists."""
        try:
            self._fs.rm_file(self._path(uri))
        except FileNotFoundError:
            return

    def info(self, uri: str) -> FileInfo | None:
        """Size and version of an object (`path` is its name); None for a prefix or a missing object."""
        found = self._info(uri)
        if found is None:
            return None
        if found.get("type") == "directory":
            return None
        return FileInfo(uri.rpartition("/")[2], int(found.get("size") or 0), _version(found))

    def is_dir(self, uri: str) -> bool:
        """Whether there is anything below `uri`."""
        found = self._info(uri)
        if found is None or found.get("type") == "directory":
            return found is not None
        if self.protocol not in ("s3", "s3a"):
            return False
        # A key may be both a file and a folder: Hadoop marks folders with empty objects.
        bucket, key, _ = self._fs.split_path(self._path(uri))
        below = self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/", MaxKeys=1)
        return bool(below.get("Contents"))

    def names(self, uri: str) -> list[str]:
        """Names of the objects and prefixes directly below `uri`, sorted."""
        path = self._path(uri)
        try:
            listed = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        names = (name.rstrip("/") for name in listed)
        return sorted(name.rpartition("/")[2] for name in names if name != path.rstrip("/"))

    def walk(self, uri: str, max_depth: int | None, enter: Enter | None = None) -> Iterator[FileInfo]:
        """Every object below `uri`, in the order of their relative paths, in bounded memory."""
        path = self._path(uri).rstrip("/")
        pages: Pages = FolderPages(self._fs, path, _version)
        if self.protocol in ("s3", "s3a") and path:
            bucket, key, _ = self._fs.split_path(path)
            pages = S3Pages(self._fs, bucket, f"{key}/" if key else "")
        return walk(pages, max_depth, enter, where=uri)

    def check_writable(self, uri: str) -> None:
        """Check that objects can be written below `uri`; leaves none behind."""
        probe = f"{uri}/.write-check"
        self.write(probe, b"", None)
        self.delete(probe)

    def _info(self, uri: str) -> dict[str, Any] | None:
        path = self._path(uri)
        try:
            return dict(self._fs.info(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            # The response to a HEAD has no body; that to a listing says why (wrong keys, another region).
            if self.protocol in ("s3", "s3a") and classify(error)[0] in ("forbidden", "storage"):
                self._fs.call_s3("list_objects_v2", Bucket=path.partition("/")[0], MaxKeys=1)
            raise

    def _cat(self, uri: str, start: int | None, end: int | None, seconds: float | None) -> bytes:
        from fsspec.asyn import AsyncFileSystem, sync

        path = self._path(uri)
        if seconds is not None and isinstance(self._fs, AsyncFileSystem):
            # `cat_file` has no timeout; this one cancels the request and closes its connection.
            cat_file = self._fs._cat_file
            return bytes(
                sync(self._fs.loop, cat_file, path, start=start, end=end, timeout=seconds, **self._read_options)
            )
        return bytes(self._fs.cat_file(path, start=start, end=end, **self._read_options))

    def _path(self, uri: str) -> str:
        return str(self._fs._strip_protocol(uri))


_filesystems: dict[tuple[int, str, StorageSettings, bool], Any] = {}
_making = threading.Lock()


def _filesystem(protocol: str, storage: StorageSettings) -> Any:
    interactive = current_policy() == INTERACTIVE
    # A forked process must not use its parent's connections.
    key = (os.getpid(), protocol, storage, interactive)
    with _making:
        if key not in _filesystems:
            _filesystems[key] = _make_filesystem(protocol, storage, interactive)
        return _filesystems[key]


def _make_filesystem(protocol: str, storage: StorageSettings, interactive: bool) -> Any:
    import fsspec

    try:
        filesystem = fsspec.filesystem(protocol, **_options(protocol, storage, interactive))
    except ImportError as error:
        package = _PACKAGES.get(protocol, "a package that supports it")
        extra = ' (pip install "captioning[s3]")' if package == "s3fs" else ""
        raise UsageError(f"{protocol}:// needs {package}, which is not installed{extra}: {error}") from error
    except ValueError as error:
        raise UsageError(f"{protocol}:// is not a known kind of storage: {error}") from error
    if protocol in ("s3", "s3a"):
        # botocore retries each request and `Location` each operation: with a third layer of retries, a dead
        # endpoint would take minutes to fail.
        filesystem.retries = 1
    return filesystem


def _options(protocol: str, storage: StorageSettings, interactive: bool) -> dict[str, Any]:
    # A cached listing would hide files that other processes have written since.
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        options["config_kwargs"] = {
            "retries": {"mode": "standard", "total_max_attempts": 2 if interactive else 3},
            "connect_timeout": 5,
            # Between two pieces of a response: a stalled connection is given up, a slow one is not.
            "read_timeout": 5 if interactive else 20,
            "max_pool_connections": MAX_CONNECTIONS,
        }
        if storage.endpoint:
            options["endpoint_url"] = storage.endpoint
        if storage.profile:
            options["profile"] = storage.profile
        if storage.anonymous:
            options["anon"] = True
        if storage.requester_pays:
            options["requester_pays"] = True
    elif protocol in ("gs", "gcs"):
        if storage.endpoint:
            options["endpoint_url"] = storage.endpoint
        if storage.anonymous:
            options["token"] = "anon"
        if storage.requester_pays:
            options["requester_pays"] = True
    return options


def _code(error: BaseException) -> str:
    """S3's error code."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _version(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created"):
        if info.get(key) is not None:
            return str(info[key]).strip('"')
    return ""
