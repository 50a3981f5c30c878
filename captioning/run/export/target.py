"""The destination of an export: a folder or URI, written file by file, each in one atomic step.

Finished pieces are recorded as empty files in `.captioning-export/done`, whose names contain the number of the
piece, the version of its part, and its counts: one listing tells a resumed export where to go on.
"""

import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from captioning.run.export.names import STATE_FOLDER
from captioning.storage import Location
from captioning.storage_errors import storage_errors

_DONE = re.compile(r"^(\d+)-([0-9a-f]+)-(\d+)-(\d+)\.done$")


@dataclass(frozen=True)
class Counts:
    """Counts of rows of the table.

    `written` are in the export, `errors` are error rows left out, `missing` images whose file could not be read any
    more, `kept` existing files with other content, which were not replaced.
    """

    written: int = 0
    errors: int = 0
    missing: int = 0
    kept: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.written + other.written,
            self.errors + other.errors,
            self.missing + other.missing,
            self.kept + other.kept,
        )


class Target:
    """A folder for files with relative names. `state` is the folder of the export's state, by default below `root`."""

    def __init__(self, root: Location, state: Location | None = None) -> None:
        self.root = root
        self.state = state or root / STATE_FOLDER
        self._folders: set[str] = set()

    @property
    def record(self) -> Location:
        """The file that records the run, format and options of the export."""
        return self.state / "export.json"

    def put(self, file: Location, data: bytes) -> None:
        """Write a small file atomically. It is not synced to disk, see `sync`."""
        if not file.is_local:
            file.write_bytes(data)
            return
        with storage_errors(file.uri, "write"), self._replacing(file.path) as temp, open(temp, "xb") as handle:
            handle.write(data)

    def link(self, file: Location, source: Location) -> None:
        """Make the local `file` a symbolic link to the local `source`."""
        with storage_errors(file.uri, "write"), self._replacing(file.path) as temp:
            os.symlink(source.path, temp)

    @contextmanager
    def stream(self, file: Location) -> Iterator[IO[bytes]]:
        """A file to write to, which exists, complete and synced, once the body has ended.

        Locally a temporary file is renamed, remotely a multipart upload is completed.
        """
        if not file.is_local:
            with file.open_write() as handle:
                yield handle
            return
        with storage_errors(file.uri, "write"), self._replacing(file.path) as temp, open(temp, "xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())

    def done(self) -> dict[int, tuple[str, Counts]]:
        """The finished pieces by number: the version of the part of each, and its counts."""
        matches = (_DONE.match(name) for name in (self.state / "done").names())
        return {int(m[1]): (m[2], Counts(written=int(m[3]), errors=int(m[4]))) for m in matches if m}

    def mark_done(self, piece: int, version: str, counts: Counts, before: tuple[str, Counts] | None = None) -> None:
        """Record that a piece is done, replacing its record `before`."""
        if before is not None and before != (version, counts):
            self._marker(piece, *before).delete()
        self.put(self._marker(piece, version, counts), b"")

    def sync(self) -> None:
        """Flush all written files to disk, before their pieces are recorded as done."""
        if self.root.is_local:
            os.sync()

    def sweep(self) -> None:
        """Delete temporary files of exports that were killed on this machine."""
        temp = self.state / "tmp"
        if not temp.is_local:
            return
        for name in temp.names():
            host, _, rest = name.rpartition("@")
            pid = rest.partition("-")[0]
            if host == platform.node() and pid.isdigit() and not _is_alive(int(pid)):
                (temp / name).delete()
        with suppress(OSError):
            temp.local_path.rmdir()

    def _marker(self, piece: int, version: str, counts: Counts) -> Location:
        return self.state / "done" / f"{piece:08d}-{version}-{counts.written}-{counts.errors}.done"

    @contextmanager
    def _replacing(self, path: str) -> Iterator[str]:
        """A temporary path that is renamed to `path` when the body has ended, and deleted if it fails."""
        self._make_folder(os.path.dirname(path))
        temp = self._temporary(path)
        try:
            yield temp
            os.replace(temp, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temp)
            raise

    def _temporary(self, path: str) -> str:
        name = f"{platform.node()}@{os.getpid()}-{secrets.token_hex(8)}"
        if self.state == self.root / STATE_FOLDER:
            folder = (self.state / "tmp").path
            self._make_folder(folder)
            return os.path.join(folder, name)
        # Beside images, folders may be on different file systems: a rename must stay within one.
        return os.path.join(os.path.dirname(path), f".{name}.tmp")

    def _make_folder(self, folder: str) -> None:
        if folder not in self._folders:
            os.makedirs(folder, exist_ok=True)
            self._folders.add(folder)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
