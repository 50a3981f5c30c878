"""What processes died of: marks on this machine that outlive the process which set them.

    attempts.begin("shard-7")     how many processes began this, did not end it, and are no more
    attempts.end("shard-7")

Ray tries the work of a process that died again, elsewhere or here, and does not say how often it
has done so. A mark is an empty file named after its process. A machine that is lost takes its marks
along: what was lost with it was not to blame. Knows nothing of what is attempted.
"""

import contextlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "captioning-attempts-"
#: Seconds after its last mark at which an execution is over: a shard is begun or ended far more often.
_OVER_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Attempts:
    """The marks of one execution; `token` is its own name for itself. Small and picklable."""

    token: str

    def begin(self, key: str) -> int:
        """Mark that this process begins `key`; the number of processes that have died at it before."""
        dead = sum(not _is_alive(process) for process in self._marked(key))
        folder = self._folder
        if not folder.exists():
            _sweep()
        while True:
            # At any step another process may have ended what it did, and removed the folder: also while `mkdir` looks
            # whether what is in its way is one.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                folder.mkdir(exist_ok=True)
                (folder / f"{key}.{os.getpid()}").touch()
                return dead

    def end(self, key: str) -> None:
        """It is done: nobody died of it after all."""
        for process in self._marked(key):
            if process == os.getpid() or not _is_alive(process):
                (self._folder / f"{key}.{process}").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # only where nothing is marked any more

    @property
    def _folder(self) -> Path:
        return Path(tempfile.gettempdir()) / f"{_PREFIX}{self.token}"

    def _marked(self, key: str) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            names = (name.rpartition(".") for name in os.listdir(self._folder))
            return [int(process) for marked, _, process in names if marked == key]
        return []


def _sweep() -> None:
    """Remove the marks of executions that are long over: killed as a whole, they could not do so themselves."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or swept by another process
            if time.time() - folder.stat().st_mtime > _OVER_S:
                shutil.rmtree(folder)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # One that waits for its parent to notice its death has no part in anything either.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return not Path("/proc/self").exists()
