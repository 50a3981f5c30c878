"""The lock of an OUTPUT: `_run/hold.json` names the driver at work, and a heartbeat shows that it is alive.

    with RunLock(layout, command="caption …", notify=print) as lock:
        …
        lock.check()          raises `RunLockedError` when another driver has taken over

The lock keeps two drivers from doing (and paying for) the same work. Correctness does not depend on it: file
names alone ensure that no row is lost or doubled. The lock of a process that died on this machine is taken over
at once, that of a process elsewhere when its heartbeat has stopped for a while (always within a minute).
"""

import getpass
import json
import platform
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType

from captioning.conditional_file import ConditionalFile, Snapshot
from captioning.errors import RunLockedError, StorageError
from captioning.redaction import redacted
from captioning.run.layout import RunLayout
from captioning.run.process import ProcessId

#: Seconds between two heartbeats, on a disk and on an object store.
_HEARTBEAT, _REMOTE_HEARTBEAT = 5.0, 10.0
#: An owner elsewhere without a heartbeat for so many seconds is taken for dead.
HEARTBEAT_TIMEOUT = 45.0
#: The most seconds to wait, at the end, for a heartbeat that is being written.
_LAST_HEARTBEAT_TIMEOUT = 30.0
_LONGEST_COMMAND = 500


@dataclass(frozen=True, kw_only=True)
class LockOwner:
    """The process that holds a lock. `since` is a time in UTC; `started` is in clock ticks since the machine's boot."""

    token: str
    host: str
    machine: str
    pid: int
    started: int | None
    user: str
    since: str
    command: str

    @classmethod
    def current(cls, command: str) -> "LockOwner":
        """This process."""
        process = ProcessId.current()
        return cls(
            token=secrets.token_hex(8),
            host=platform.node() or "unknown",
            machine=process.machine,
            pid=process.pid,
            started=process.started,
            user=_user(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
        )

    @classmethod
    def from_json(cls, data: bytes) -> "LockOwner | None":
        """Parse `hold.json`; None if it is damaged."""
        try:
            values = json.loads(data)
            return cls(**{name: values[name] for name in cls.__dataclass_fields__})
        except (ValueError, KeyError, TypeError):
            return None

    def to_json(self, heartbeats: int = 0) -> bytes:
        """The content of `hold.json`; `heartbeats` counts those that are written into the file."""
        return (json.dumps(asdict(self) | {"beat": heartbeats}, indent=1, ensure_ascii=True) + "\n").encode()

    def alive(self) -> bool | None:
        """Whether the process is running; None if that cannot be determined on this machine."""
        return ProcessId(self.machine, self.pid, self.started).alive()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.user}, since {self.since}: {self.command})"


def lock_owner(layout: RunLayout) -> LockOwner | None:
    """The owner of the OUTPUT's lock, None if it is free; the process may be dead (see `LockOwner.alive`).

    Raises `StorageError`.
    """
    snapshot = ConditionalFile(layout.lock_file, layout.tmp_dir).read()
    return LockOwner.from_json(snapshot.data) if snapshot is not None else None


class RunLock:
    """This process's lock on an OUTPUT, a context manager.

    `notify` shows users a line. `heartbeat` (the interval) and `timeout` are in seconds.
    """

    def __init__(
        self,
        layout: RunLayout,
        *,
        notify: Callable[[str], None],
        command: str | None = None,
        heartbeat: float | None = None,
        timeout: float = HEARTBEAT_TIMEOUT,
    ) -> None:
        self.layout = layout
        self.owner = LockOwner.current(command if command is not None else command_line(sys.argv))
        self._notify = notify
        self._file = ConditionalFile(layout.lock_file, layout.tmp_dir)
        default = _HEARTBEAT if layout.root.is_local else _REMOTE_HEARTBEAT
        self._heartbeat = heartbeat if heartbeat is not None else default
        self._timeout = timeout
        self._etag: str | None = None
        self._heartbeats = 0
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="run-lock", daemon=True)

    def __enter__(self) -> "RunLock":
        """Acquire the lock. Raises `RunLockedError` when another driver that is alive has it, and `StorageError`."""
        while self._etag is None:
            self._etag = self._create()
            if self._etag is None:
                self._etag = self._take_over()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(_LAST_HEARTBEAT_TIMEOUT)  # a heartbeat in progress would write the file again
        if self._etag is None or self._lost.is_set():
            return
        try:
            self._file.remove(self._etag)
        except StorageError as failure:
            self._notify(f"Could not remove {self.layout.lock_file} ({failure}). The next driver can still take over.")

    @property
    def is_held(self) -> bool:
        """Whether this process has acquired the lock and not lost it; still true after `__exit__`."""
        return self._etag is not None and not self._lost.is_set()

    def check(self) -> None:
        """Raise `RunLockedError` when another driver has taken over."""
        if self._lost.is_set():
            now = lock_owner(self.layout)
            raise RunLockedError(
                f"Another driver has taken over {self.layout.root}: {now or 'it has ended since'}. This one gave no "
                "sign of life for too long and has stopped; what it finished is kept."
            )

    def _create(self) -> str | None:
        data = self.owner.to_json()
        if not self._file.conditional or self.layout.root.is_local:
            etag = self._file.create(data)
            if etag is not None and not self._file.conditional:
                self._warn_unconditional()
            return etag
        try:
            etag = self._file.create(data)
            # A store without conditional writes ignores the condition, and the second write succeeds too.
            supported = etag is None or self._file.create(data) is None
        except StorageError as error:
            if error.error_class != "storage":
                raise
            etag, supported = None, False
        if not supported:
            self._file.conditional = False
            self._warn_unconditional()
            if etag is None:
                return self._file.create(data)
        return etag

    def _warn_unconditional(self) -> None:
        self._notify(
            f"The store of {self.layout.root} does not support conditional writes: two drivers that start at the same "
            "moment would not notice each other and would do some work twice. The table would still be correct."
        )

    def _take_over(self) -> str | None:
        """Replace the lock of a dead driver; None if it changed meanwhile. Raises `RunLockedError` if it is alive."""
        snapshot = self._file.read()
        if snapshot is None:
            return None
        other = LockOwner.from_json(snapshot.data)
        if other is not None and other.token == self.owner.token:
            return snapshot.etag  # it was written, and the response was lost
        alive = other.alive() if other is not None else None
        if alive:
            raise self._locked_by(other)
        who = str(other) if other is not None else "an unknown process"
        if alive is None:
            snapshot = self._wait(snapshot, who)
            if snapshot is None:
                return None
            line = f"{who} has given no sign of life for {self._timeout:g} s; this driver takes over."
        else:
            line = f"{who} is dead; this driver takes over."
        etag = self._file.replace(self.owner.to_json(), snapshot.etag)
        if etag is not None:
            self._notify(line[:1].upper() + line[1:])
        return etag

    def _wait(self, snapshot: Snapshot, who: str) -> Snapshot | None:
        """Wait for the heartbeat of an owner elsewhere; None if it releases the lock meanwhile.

        Raises `RunLockedError` if there is one.
        """
        self._notify(
            f"{self.layout.root} is held by {who}; whether it is alive cannot be checked from here. "
            f"Waiting up to {self._timeout:g} s for a sign of life."
        )
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(self._heartbeat / 2, left))
            now = self._file.read()
            if now is None:
                return None
            if now.heartbeat != snapshot.heartbeat:
                raise self._locked_by(LockOwner.from_json(now.data))
        return snapshot

    def _locked_by(self, other: LockOwner | None) -> RunLockedError:
        stop = f", or stop it there (kill {other.pid})" if other is not None else ""
        return RunLockedError(
            f"Another driver is running in {self.layout.root}: {other or 'an unknown process'}. "
            f"Wait for it to end{stop}; then run the same command again."
        )

    def _keep_alive(self) -> None:
        """Send heartbeats until the end, or until another driver has taken over."""
        while not self._ended.wait(self._heartbeat):
            try:
                self._send_heartbeat()
            except Exception:  # the next one may succeed; if none does, other drivers see the timeout
                continue
            if self._lost.is_set():
                return

    def _send_heartbeat(self) -> None:
        assert self._etag is not None
        self._heartbeats += 1
        data = self.owner.to_json(self._heartbeats)
        etag = self._file.touch(data, self._etag)
        if etag is None:
            snapshot = self._file.read()
            now = LockOwner.from_json(snapshot.data) if snapshot is not None else None
            if snapshot is None:
                etag = self._file.create(data)  # a user has deleted it
            elif now is not None and now.token == self.owner.token:
                etag = snapshot.etag  # it was written, and the response was lost
        if etag is None:
            self._lost.set()
        else:
            self._etag = etag


def command_line(arguments: list[str]) -> str:
    """The command as a user would type it, of bounded length and without credentials."""
    words = [shlex.quote(word) for word in redacted(arguments)]
    if arguments and arguments[0].endswith("jobs/__main__.py"):
        words[0] = "python -m jobs"
    text = " ".join(words)
    return text if len(text) <= _LONGEST_COMMAND else text[: _LONGEST_COMMAND - 1] + "…"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"
