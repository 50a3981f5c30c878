"""Files on local paths and fsspec URIs behind one small interface.

    Location.parse("s3://bucket/photos") / "cat.jpg"      .read_bytes()   .walk()   .write_bytes(…)

Writes are atomic, listings are sorted and never stale, failures raise `StorageError` with an error class,
and transient failures are retried.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from captioning.errors import StorageError, UsageError
from captioning.local_files import Enter, FileInfo, LocalFiles
from captioning.remote_files import RemoteFiles, StorageSettings
from captioning.retries import RetryPolicy, call_with_retries
from captioning.retrying_file import RetryingFile
from captioning.storage_errors import storage_errors
from captioning.web_files import WebFiles

__all__ = ["FileInfo", "Location", "StorageSettings", "escape_name", "unescape_name"]

T = TypeVar("T")

_PROTOCOL = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://")
#: Protocols whose URIs begin with a bucket.
_BUCKETS = ("s3", "s3a", "gs", "gcs")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_LOOKS_ESCAPED = re.compile(rb"\\(?=x[0-9a-f]{2})")


def escape_name(name: str) -> str:
    r"""`name` as valid Unicode: a byte that is not UTF-8 becomes `\xNN`.

    A backslash that would read as such an escape becomes `\x5c`, so that no two names give the same text.
    """
    raw = _LOOKS_ESCAPED.sub(rb"\\x5c", name.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "backslashreplace")


def unescape_name(text: str) -> str:
    """The inverse of `escape_name`: the name as the file system has it."""
    raw = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Location:
    """A file or a folder, local or remote. Made with `parse`; cheap, hashable and picklable.

    `path` is an absolute path when local, a URI without a trailing slash otherwise.
    """

    path: str
    settings: StorageSettings = field(default_factory=StorageSettings)

    @classmethod
    def parse(cls, text: str, settings: StorageSettings | None = None) -> "Location":
        """The location of a path (also relative, or with `~`) or a URI as a user writes it."""
        settings = settings or StorageSettings()
        if not text:
            raise UsageError("A path is empty where a file or a folder is needed.")
        if "::" in text and _PROTOCOL.search(text.rpartition("::")[2]):
            raise UsageError(f"{escape_name(text)} chains file systems with '::', which is not supported.")
        match = _PROTOCOL.match(text)
        if match is None:
            return cls(_absolute(os.path.expanduser(text)), settings)
        if match[1] in ("file", "local"):
            return cls(_absolute("/" + text[match.end() :]), settings)
        bucket = text[match.end() :].partition("/")[0]
        if match[1].lower() in _BUCKETS and not bucket:
            raise UsageError(f"{escape_name(text)} names no bucket: use {match[0].lower()}BUCKET/FOLDER.")
        if match[1].lower() in _BUCKETS and "@" in bucket:
            raise UsageError(
                f"A {match[0].lower()} URI contains keys before its bucket, which tables and messages would show. "
                "Remove them, and set them in the environment or a profile."
            )
        return cls(match[0].lower() + text[match.end() :].rstrip("/"), settings)

    @classmethod
    def from_uri(cls, uri: str, settings: StorageSettings | None = None) -> "Location":
        """The location whose `uri` is `uri`, as an index or a table has it; undoes its escapes."""
        return cls.parse(unescape_name(uri), settings)

    @property
    def uri(self) -> str:
        """The absolute path or the URI as valid Unicode, bytes that are not UTF-8 escaped."""
        return escape_name(self.path)

    @property
    def name(self) -> str:
        """The last component."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        """The folder that contains this location."""
        return Location(self.path.rpartition("/")[0] or "/", self.settings)

    @property
    def is_local(self) -> bool:
        """Whether this is a path in the local file system."""
        return _PROTOCOL.match(self.path) is None

    @property
    def local_path(self) -> Path:
        """The path of a local location."""
        assert self.is_local, f"{self.uri} is not local"
        return Path(self.path)

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> "Location":
        slash = "" if self.path.endswith("/") else "/"
        return Location(f"{self.path}{slash}{name}", self.settings)

    def read_bytes(self, *, retry: RetryPolicy | None = None) -> bytes:
        """The content of the file. Raises `StorageError`, also when it takes longer than `retry` allows."""
        return self._try_within(lambda files, seconds: files.read(self.path, seconds), "read", retry)

    def read_text(self) -> str:
        """The content of the file as UTF-8; invalid bytes become surrogate escapes."""
        return self.read_bytes().decode("utf-8", "surrogateescape")

    def read_range(self, offset: int, length: int, *, retry: RetryPolicy | None = None) -> bytes:
        """`length` bytes from `offset`, fewer at the end of the file."""
        return self._try_within(
            lambda files, seconds: files.read_range(self.path, offset, length, seconds), "read", retry
        )

    def open_read(self) -> BinaryIO:
        """Open a seekable binary file; the caller closes it."""
        file = self._try(lambda files: files.open_read(self.path), "read")
        return file if self.is_local else cast(BinaryIO, RetryingFile(file, self.uri))

    def write_bytes(self, data: bytes, *, temp: "Location | None" = None) -> None:
        """Write the file in one atomic step, creating its folders.

        Locally a temporary file is written in the folder `temp` (default: beside the file), synced
        and renamed; remotely this is one PUT.
        """
        temp_folder = temp.path if temp is not None else None
        self._try(lambda files: files.write(self.path, data, temp_folder), "write")

    def write_text(self, text: str, *, temp: "Location | None" = None) -> None:
        """`write_bytes` of UTF-8 text."""
        self.write_bytes(text.encode("utf-8", "surrogateescape"), temp=temp)

    def create_bytes(self, data: bytes, *, temp: "Location | None" = None) -> bool:
        """As `write_bytes`, but only if the file does not exist; returns whether it was written."""
        temp_folder = temp.path if temp is not None else None
        attempts = 0

        def create(files: LocalFiles | RemoteFiles) -> bool:
            nonlocal attempts
            attempts += 1
            # An earlier attempt may have written it, and only its response was lost.
            return files.create(self.path, data, temp_folder) or (attempts > 1 and files.read(self.path) == data)

        return self._try(create, "write")

    @contextmanager
    def open_write(self) -> Iterator[BinaryIO]:
        """A remote file to write in pieces: it exists once the body has ended, and is discarded if the body fails."""
        assert not self.is_local, f"{self.uri} is local"
        with storage_errors(self.uri, "write"), RemoteFiles(self._protocol(), self.settings).open_write(self.path) as f:
            yield f

    def append_bytes(self, data: bytes) -> None:
        """Append `data`: one system call locally; remotely the whole object is rewritten."""
        if self.is_local:
            with storage_errors(self.uri, "write"):
                LocalFiles().append(self.path, data)
        else:
            # The read and the write are retried separately, so that no retry appends the data twice.
            before = self.read_bytes() if self.info() is not None else b""
            self.write_bytes(before + data)

    def info(self) -> FileInfo | None:
        """Size and version of the file (`path` is its name); None for a folder or a missing file."""
        return self._try(lambda files: files.info(self.path), "read")

    def exists(self) -> bool:
        """Whether there is a file or a folder here."""
        return self.info() is not None or self.is_dir()

    def is_dir(self) -> bool:
        """Whether there is a folder here (remotely: any object below this prefix)."""
        return self._try(lambda files: files.is_dir(self.path), "read")

    def names(self) -> list[str]:
        """Names of the files and folders directly in this folder, sorted; [] when it is missing."""
        return self._try(lambda files: files.names(self.path), "list")

    def walk(self, max_depth: int | None = None, enter: Enter | None = None) -> Iterator[FileInfo]:
        """Every file below this folder, sorted by relative path; `max_depth` 1 means only those directly in it.

        Folders for which `enter`, called with their relative path, is false are skipped.
        """
        with storage_errors(self.uri, "list"):
            yield from self._files().walk(self.path, max_depth, enter)

    def delete(self, *, missing_ok: bool = True) -> None:
        """Remove the file."""
        if not missing_ok and self.info() is None:
            raise StorageError("missing", f"Could not delete {self.uri}: there is no such file.")
        self._try(lambda files: files.delete(self.path), "delete")

    def abort_uploads(self, prefix: str) -> int:
        """Abort multipart uploads, of objects whose names begin with `prefix`, that a killed writer left; how many.

        Only S3 has them, and charges for them. No process may be writing such an object at the moment.
        """
        with storage_errors(self.uri, "list"):
            files = self._files()
            return files.abort_uploads(f"{self.path}/{prefix}") if isinstance(files, RemoteFiles) else 0

    def download(self, folder: Path) -> None:
        """Copy this file, or everything below this folder, into the local `folder`."""
        target = Location.parse(str(folder))
        if self.info() is not None:
            (target / self.name).write_bytes(self.read_bytes())
            return
        found = False
        for file in self.walk():
            found = True
            source, copy = self / file.path, target / file.path
            with storage_errors(copy.uri, "write"):
                copy.local_path.parent.mkdir(parents=True, exist_ok=True)
                with source.open_read() as reader, open(copy.path, "wb") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
        if not found:
            raise StorageError("missing", f"{self.uri} does not exist. Check the spelling.")

    def check_writable(self) -> None:
        """Raise `StorageError` unless files can be written below this folder; leaves no file behind."""
        self._try(lambda files: files.check_writable(self.path), "write to")

    def _files(self) -> LocalFiles | RemoteFiles:
        if self.is_local:
            return LocalFiles()
        protocol = self._protocol()
        return (WebFiles if protocol in ("http", "https") else RemoteFiles)(protocol, self.settings)

    def _protocol(self) -> str:
        match = _PROTOCOL.match(self.path)
        assert match is not None, f"{self.uri} is local"
        return match[1]

    def _try(self, operation: Callable[[LocalFiles | RemoteFiles], T], action: str) -> T:
        return self._try_within(lambda files, _: operation(files), action, None)

    def _try_within(
        self,
        operation: Callable[[LocalFiles | RemoteFiles, float | None], T],
        action: str,
        retry: RetryPolicy | None,
    ) -> T:
        def attempt(seconds: float | None) -> T:
            with storage_errors(self.uri, action):
                return operation(self._files(), seconds)

        return call_with_retries(attempt, retry)


def _absolute(path: str) -> str:
    # POSIX leaves the meaning of two leading slashes open; here they are one.
    return "/" + os.path.abspath(path).lstrip("/")
