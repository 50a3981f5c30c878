"""A small file shared by several processes, with compare-and-swap writes.

    file = ConditionalFile(location)
    etag = file.create(b"mine")               None when the file exists
    etag = file.replace(b"newer", etag)       None when another process has changed it

Local writes are a link and a rename, under a lock of the folder where the file system has locks; on S3
they are conditional PUTs. Other stores have no conditional writes here (`conditional` is False): of two
writers at the same moment the later one wins.
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
class Snapshot:
    """The file as it was read. `etag` identifies the content, `heartbeat` changes with every `touch` as well."""

    data: bytes
    etag: str
    heartbeat: str


class ConditionalFile:
    """The file at `location`; temporary files are written to the folder `temp`, on the same file system."""

    def __init__(self, location: Location, temp: Location) -> None:
        self.location = location
        self.temp = temp
        self.conditional = location.is_local or location.path.startswith(("s3://", "s3a://"))

    def read(self) -> Snapshot | None:
        """Read the file; None when it does not exist. Raises `StorageError`."""
        if self.location.is_local:
            try:
                with storage_errors(self.location.uri), open(self.location.path, "rb") as file:
                    data = file.read()
                    return Snapshot(data, data.hex(), str(os.fstat(file.fileno()).st_mtime_ns))
            except StorageError as error:
                if error.error_class == "missing":
                    return None
                raise
        # The ETag first: if the content changes in between, the old ETag makes the next conditional write fail.
        info = self.location.info()
        if info is None:
            return None
        try:
            return Snapshot(self.location.read_bytes(), info.version, info.version)
        except StorageError as error:
            if error.error_class == "missing":
                return None
            raise

    def create(self, data: bytes) -> str | None:
        """Write `data` if the file does not exist; the new ETag, else None. Raises `StorageError`."""
        if not self.location.is_local and self.conditional:
            return self._put(data, None)
        with self._locked():
            return self._etag(data) if self.location.create_bytes(data, temp=self.temp) else None

    def replace(self, data: bytes, etag: str) -> str | None:
        """Write `data` if the file still has this ETag; the new ETag, else None. Raises `StorageError`."""
        if self.location.is_local:
            with self._locked():
                written = self._remove_local(etag) and self.location.create_bytes(data, temp=self.temp)
            return self._etag(data) if written else None
        if self.conditional:
            return self._put(data, etag)
        snapshot = self.read()
        if snapshot is None or snapshot.etag != etag:
            return None
        self.location.write_bytes(data)
        return self._etag(data)

    def touch(self, data: bytes, etag: str) -> str | None:
        """Change `Snapshot.heartbeat` if the file still has this ETag; remotely only by writing `data`.

        The ETag afterwards, or None when another process has changed the file. Raises `StorageError`.
        """
        if not self.location.is_local:
            return self.replace(data, etag)
        with self._locked():
            snapshot = self.read()
            if snapshot is None or snapshot.etag != etag:
                return None
            with storage_errors(self.location.uri, "write"):
                os.utime(self.location.path)
            return etag

    def remove(self, etag: str) -> None:
        """Delete the file if it still has this ETag. Raises `StorageError`."""
        if self.location.is_local:
            with self._locked():
                self._remove_local(etag)
            return
        snapshot = self.read()
        if snapshot is not None and snapshot.etag == etag:
            self.location.delete()

    def _remove_local(self, etag: str) -> bool:
        """Rename the file away, which only one process can do; put it back if its content has another ETag."""
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
            if aside.read_bytes().hex() == etag:
                return True
            with suppress(OSError):  # a newer file is there already
                os.link(aside, self.location.path)
            return False
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude other processes of this machine, where the file system has locks."""
        if not self.location.is_local:
            yield
            return
        folder = self.location.parent.path
        with storage_errors(folder, "write to"):
            os.makedirs(folder, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # NFS has no locks of folders
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _put(self, data: bytes, etag: str | None) -> str | None:
        with storage_errors(self.location.uri, "write"):
            files = self.location._files()
            assert isinstance(files, RemoteFiles)
            return files.put_if(self.location.path, data, etag)

    def _etag(self, data: bytes) -> str:
        if self.location.is_local:
            return data.hex()
        info = self.location.info()
        return info.version if info is not None else ""
