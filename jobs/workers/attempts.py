"""Counts how many processes of this machine died during a piece of work, by marker files that outlive them.

    attempts.begin("shard-7")     the number of processes that began this, did not end it, and have died
    attempts.end("shard-7")

Ray retries the work of a process that died, here or elsewhere, and does not report how often. A marker is an empty
file named after its process. Markers on a lost machine are lost with it, rightly: its work was not to blame.
"""

import contextlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "captioning-attempts-"
#: Seconds after its last marker at which an execution is certainly over: shards begin and end far more often.
_EXPIRY_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Attempts:
    """The markers of one execution, which `token` identifies. Small and picklable."""

    token: str

    def begin(self, key: str) -> int:
        """Mark that this process begins `key`; returns the number of processes that have died during it before."""
        dead = sum(not _is_alive(process) for process in self._marked(key))
        folder = self._folder
        if not folder.exists():
            _sweep()
        while True:
            # At any point another process may end its work and remove the folder: even while `mkdir` checks whether
            # the existing path is a folder.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                folder.mkdir(exist_ok=True)
                (folder / f"{key}.{os.getpid()}").touch()
                return dead

    def end(self, key: str) -> None:
        """Mark that `key` is done, and remove the markers of processes that died during it."""
        for process in self._marked(key):
            if process == os.getpid() or not _is_alive(process):
                (self._folder / f"{key}.{process}").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # fails while there are other markers

    @property
    def _folder(self) -> Path:
        return Path(tempfile.gettempdir()) / f"{_PREFIX}{self.token}"

    def _marked(self, key: str) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            names = (name.rpartition(".") for name in os.listdir(self._folder))
            return [int(process) for name, _, process in names if name == key]
        return []


def _sweep() -> None:
    """Remove the markers of executions that were killed as a whole, long ago."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or removed by another process
            if time.time() - folder.stat().st_mtime > _EXPIRY_SECONDS:
                shutil.rmtree(folder)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # A zombie, which its parent has not waited for, is dead as well.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return not Path("/proc/self").exists()
