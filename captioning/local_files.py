"""Files of this machine (or of a file system mounted on it): atomic writes, sorted listings.

Paths are absolute texts; bytes of a name that are not UTF-8 stand in them as Python's surrogate
escapes. This module raises the operating system's errors; `storage` words them for people.
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

    `path` is relative to the folder listed, with `/`; `size` is in bytes; `version` changes when
    the content does (an ETag, or the time of modification in nanoseconds).
    """

    path: str
    size: int
    version: str


#: Whether a folder, by its path relative to the one listed, is worth listing.
Enter = Callable[[str], bool]


class LocalFiles:
    """The operations of `storage.Location` on local paths."""

    def read(self, path: str, seconds: float | None = None) -> bytes:  # noqa: ARG002 - nothing can end a local read
        """The whole file."""
        with open(path, "rb") as file:
            return file.read()

    def read_range(self, path: str, offset: int, length: int, seconds: float | None = None) -> bytes:  # noqa: ARG002
        """`length` bytes from `offset`, fewer at the end of the file."""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def open_read(self, path: str) -> BinaryIO:
        """A seekable binary file."""
        return open(path, "rb")

    def write(self, path: str, data: bytes, temp_folder: str | None) -> None:
        """Write so that `path` holds either what it held before or all of `data`, whatever is killed.

        The temporary file is made in `temp_folder` (on the same file system), else beside `path`.
        """
        temp = _write_temp(path, data, temp_folder)
        try:
            os.replace(temp, path)
        except BaseException:
            self.delete(temp)
            raise
        _sync_folder(os.path.dirname(path))

    def create(self, path: str, data: bytes, temp_folder: str | None) -> bool:
        """`write`, but only where there is no file yet: False, and nothing changed, when there is one."""
        temp = _write_temp(path, data, temp_folder)
        try:
            os.link(temp, path)
        except FileExistsError:
            return False
        except OSError:
            # A file system without hard links: look first, then rename.
            if os.path.lexists(path):
                return False
            os.replace(temp, path)
        finally:
            self.delete(temp)
        _sync_folder(os.path.dirname(path))
        return True

    def append(self, path: str, data: bytes) -> None:
        """Add `data` at the end of the file in one system call, making it first if need be."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def delete(self, path: str) -> None:
        """Remove the file. Does nothing when there is none."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return

    def info(self, path: str) -> FileInfo | None:
        """Size and version of a file (`path` is its name), or None when it is a folder or nothing."""
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
        """Every file below `path`, in the order of their relative paths.

        Links to folders are followed, except one that leads back to a folder it lies in. Memory
        is bounded by the largest folder.
        """
        status = os.stat(path)
        yield from _walk(path, "", max_depth, enter, ((status.st_dev, status.st_ino),))

    def check_writable(self, path: str) -> None:
        """Make sure that files can be written at or below `path`, and leave nothing behind."""
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
        # A folder sorts as its name with the slash that follows it in every path below it: so
        # the walk's order is the order of the whole paths.
        listed = sorted((entry.name + "/" if _is_folder(entry) else entry.name) for entry in entries)
    for name in listed:
        full = os.path.join(folder, name)
        try:
            status = os.stat(full)
        except OSError:
            # A link that leads nowhere is listed: it is the reader that says what is wrong with it.
            status = os.lstat(full)
        if not name.endswith("/"):
            # Pipes, sockets and devices would block their reader for ever.
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
        # A link that leads to itself.
        return False


def _write_temp(path: str, data: bytes, temp_folder: str | None) -> str:
    """Write `data` to a new temporary file, synced, and make the folder of `path`. Returns its path."""
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
        # Some network file systems know no fsync of a folder; the rename itself has been done.
        return
    finally:
        os.close(descriptor)
