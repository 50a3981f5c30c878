"""Files of the local file system (and of file systems mounted in it): atomic writes, sorted listings.

Paths are absolute strings, in which bytes that are not UTF-8 are Python's surrogate escapes. This module
raises the operating system's errors; `storage` turns them into `StorageError`.
"""

import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class FileInfo:
    """One file of a listing.

    `path` is relative to the folder listed, with `/`; `size` is in bytes; `version` changes with the
    content (an ETag, or the modification time in nanoseconds).
    """

    path: str
    size: int
    version: str


#: Whether to list a folder, given its path relative to the root of the listing.
Enter = Callable[[str], bool]


class LocalFiles:
    """The operations of `storage.Location` on local paths."""

    def read(self, path: str, seconds: float | None = None) -> bytes:  # noqa: ARG002 - a local read has no timeout
        """The content of the file."""
        with open(path, "rb") as file:
            return file.read()

    def read_range(self, path: str, offset: int, length: int, seconds: float | None = None) -> bytes:  # noqa: ARG002
        """`length` bytes from `offset`, fewer at the end of the file."""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def open_read(self, path: str) -> BinaryIO:
        """Open a seekable binary file."""
        return open(path, "rb")

    def write(self, path: str, data: bytes, temp_folder: str | None) -> None:
        """Write atomically: whatever is killed, `path` has either its old content or all of `data`.

        The temporary file is created in `temp_folder` (on the same file system), else beside `path`.
        """
        temp = _write_temp(path, data, temp_folder)
        try:
            os.replace(temp, path)
        except BaseException:
            self.delete(temp)
            raise
        _sync_folder(os.path.dirname(path))

    def create(self, path: str, data: bytes, temp_folder: str | None) -> bool:
        """As `write`, but only if `path` does not exist; returns whether it was written."""
        temp = _write_temp(path, data, temp_folder)
        try:
            os.link(temp, path)
        except FileExistsError:
            return False
        except OSError:
            # A file system without hard links: check first, then rename.
            if os.path.lexists(path):
                return False
            os.replace(temp, path)
        finally:
            self.delete(temp)
        _sync_folder(os.path.dirname(path))
        return True

    def append(self, path: str, data: bytes) -> None:
        """Append `data` in one system call, creating the file if necessary."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def delete(self, path: str) -> None:
        """Remove the file, if it exists."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return

    def info(self, path: str) -> FileInfo | None:
        """Size and version of a file (`path` is its name); None for a folder or a missing file."""
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if os.path.isdir(path):
            return None
        return FileInfo(os.path.basename(path), status.st_size, str(status.st_mtime_ns))

    def is_dir(self, path: str) -> bool:
        """Whether there is a folder at `path`."""
        return os.path.isdir(path)

    def names(self, path: str) -> list[str]:
        """Names of the files and folders directly in `path`, sorted."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def walk(self, path: str, max_depth: int | None, enter: Enter | None = None) -> Iterator[FileInfo]:
        """Every file below `path`, sorted by relative path.

        Links to folders are followed, except those that lead back to a folder above them. Memory is
        bounded by the largest folder.
        """
        status = os.stat(path)
        yield from _walk(path, "", max_depth, enter, ((status.st_dev, status.st_ino),))

    def check_writable(self, path: str) -> None:
        """Check that files can be written at or below `path`; leaves no file behind."""
        folder = path
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        probe = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        finally:
            if os.path.isdir(folder):
                self.delete(probe)


def _walk(
    folder: str, prefix: str, max_depth: int | None, enter: Enter | None, above: tuple[tuple[int, int], ...]
) -> Iterator[FileInfo]:
    with os.scandir(folder) as entries:
        # A folder sorts by its name with the slash that follows it in every path below it, so that
        # the walk is in the order of whole paths.
        listed = sorted((entry.name + "/" if _is_folder(entry) else entry.name) for entry in entries)
    for name in listed:
        full = os.path.join(folder, name)
        try:
            status = os.stat(full)
        except OSError:
            # A dangling link is listed: reading it reports what is wrong.
            status = os.lstat(full)
        if not name.endswith("/"):
            # Reading a pipe, a socket or a device could block for ever.
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                yield FileInfo(prefix + name, status.st_size, str(status.st_mtime_ns))
        elif (status.st_dev, status.st_ino) not in above and max_depth != 1:
            deeper = None if max_depth is None else max_depth - 1
            if enter is None or enter(prefix + name[:-1]):
                yield from _walk(full, prefix + name, deeper, enter, (*above, (status.st_dev, status.st_ino)))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself.
        return False


def _write_temp(path: str, data: bytes, temp_folder: str | None) -> str:
    """Write `data` to a new temporary file, synced, and create the folder of `path`; the temporary file's path."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    if temp_folder is not None:
        os.makedirs(temp_folder, exist_ok=True)
    temp = os.path.join(temp_folder or folder, f".{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temp, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(temp)
        raise
    return temp


def _sync_folder(folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems cannot fsync a folder; the rename itself is done.
        return
    finally:
        os.close(descriptor)
