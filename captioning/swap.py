"""One small file that several processes agree on: created, replaced or removed only as it was last seen.

    file = SwapFile(location)
    tag = file.create(b"mine")               None when there is one already
    tag = file.replace(b"newer", tag)        None when somebody changed it since

Locally the steps are a link and a rename, under a lock of the folder where it knows locks; on S3 a
PUT with a condition. Other stores know no conditions here (`conditional` is then False): of two
writers in the very same moment the later one wins. Knows nothing of what is in the file.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from captioning.errors import StorageError
from captioning.remote_files import RemoteFiles
from captioning.storage import Location
from captioning.storage_errors import storage_errors


@dataclass(frozen=True)
class Seen:
    """What was in the file. `tag` stands for the content, `sign` changes with every sign of life, too."""

    data: bytes
    tag: str
    sign: str


class SwapFile:
    """The file at `location`; `temp` is a folder on the same file system for files being written."""

    def __init__(self, location: Location, temp: Location) -> None:
        self.location = location
        self.temp = temp
        self.conditional = location.is_local or location.path.startswith(("s3://", "s3a://"))

    def read(self) -> Seen | None:
        """What is in it, None when it is not there. Raises `StorageError`."""
        if self.location.is_local:
            try:
                with storage_errors(self.location.uri), open(self.location.path, "rb") as file:
                    data = file.read()
                    return Seen(data, data.hex(), str(os.fstat(file.fileno()).st_mtime_ns))
            except StorageError as error:
                if error.error_class == "missing":
                    return None
                raise
        # The tag first: when the content changes in between, the tag is the old one and fits nothing any more.
        info = self.location.info()
        if info is None:
            return None
        try:
            return Seen(self.location.read_bytes(), info.version, info.version)
        except StorageError as error:
            if error.error_class == "missing":
                return None
            raise

    def create(self, data: bytes) -> str | None:
        """Write `data` if there is no file yet; the new tag, or None when there is one. Raises `StorageError`."""
        if not self.location.is_local and self.conditional:
            return self._put(data, None)
        with self._locked():
            return self._tag(data) if self.location.create_bytes(data, temp=self.temp) else None

    def replace(self, data: bytes, tag: str) -> str | None:
        """Write `data` if the content still is that of `tag`; the new tag, or None. Raises `StorageError`."""
        if self.location.is_local:
            with self._locked():
                written = self._take_away(tag) and self.location.create_bytes(data, temp=self.temp)
            return self._tag(data) if written else None
        if self.conditional:
            return self._put(data, tag)
        seen = self.read()
        if seen is None or seen.tag != tag:
            return None
        self.location.write_bytes(data)
        return self._tag(data)

    def touch(self, data: bytes, tag: str) -> str | None:
        """Give a sign of life if the content still is that of `tag`: `data` replaces it where that is the only way.

        The tag from now on, or None when somebody else changed the file. Raises `StorageError`.
        """
        if not self.location.is_local:
            return self.replace(data, tag)
        with self._locked():
            seen = self.read()
            if seen is None or seen.tag != tag:
                return None
            with storage_errors(self.location.uri, "write"):
                os.utime(self.location.path)
            return tag

    def remove(self, tag: str) -> None:
        """Delete the file if the content still is that of `tag`. Raises `StorageError`."""
        if self.location.is_local:
            with self._locked():
                self._take_away(tag)
            return
        seen = self.read()
        if seen is not None and seen.tag == tag:
            self.location.delete()

    def _take_away(self, tag: str) -> bool:
        """Rename the file out of the way, which one process alone can do; put it back when it is another one."""
        aside = self.temp.local_path / f".{secrets.token_hex(8)}.tmp"
        try:
            with storage_errors(self.location.uri, "write"):
                aside.parent.mkdir(parents=True, exist_ok=True)
                os.rename(self.location.path, aside)
        except StorageError as error:
            if error.error_class == "missing":
                return False
            raise
        try:
            if aside.read_bytes().hex() == tag:
                return True
            with suppress(OSError):  # there already is a newer one
                os.link(aside, self.location.path)
            return False
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the processes of this machine, where the file system knows locks."""
        if not self.location.is_local:
            yield
            return
        folder = self.location.parent.path
        with storage_errors(folder, "write to"):
            os.makedirs(folder, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # NFS locks no folders
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _put(self, data: bytes, tag: str | None) -> str | None:
        with storage_errors(self.location.uri, "write"):
            files = self.location._files()
            assert isinstance(files, RemoteFiles)
            return files.put_if(self.location.path, data, tag)

    def _tag(self, data: bytes) -> str:
        if self.location.is_local:
            return data.hex()
        info = self.location.info()
        return info.version if info is not None else ""
