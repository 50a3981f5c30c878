"""One driver at a time in an OUTPUT: `_run/hold.json` says which, and a heartbeat that it lives.

    with Hold(layout, command="caption …", say=print) as hold:
        …
        hold.check()          raises `HeldError` when another driver has taken over

A hold keeps people from paying for the same work twice; that no row is lost or doubled never
rests on it, but on the names of files. The hold of a process that died on this machine is taken
over at once, that of one elsewhere when it has given no sign of life for a while (always within
a minute). Knows nothing of what the driver does.
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

from captioning.errors import HeldError, StorageError
from captioning.redaction import redacted
from captioning.run.layout import RunLayout
from captioning.run.process import ProcessId
from captioning.swap import Seen, SwapFile

#: Seconds between two signs of life, on a disk and on an object store.
_BEAT, _REMOTE_BEAT = 5.0, 10.0
#: A holder elsewhere that gives no sign for so many seconds is taken for dead.
SILENCE = 45.0
_LONGEST_BEAT = 30.0
_LONGEST_COMMAND = 500


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds an OUTPUT. `since` is a time in UTC; `started` is in clock ticks since the machine's boot."""

    token: str
    host: str
    machine: str
    pid: int
    started: int | None
    user: str
    since: str
    command: str

    @classmethod
    def mine(cls, command: str) -> "Holder":
        """This process."""
        process = ProcessId.mine()
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
    def from_json(cls, data: bytes) -> "Holder | None":
        """Read `hold.json`; None for one that is damaged."""
        try:
            values = json.loads(data)
            return cls(**{name: values[name] for name in cls.__dataclass_fields__})
        except (ValueError, KeyError, TypeError):
            return None

    def to_json(self, beat: int = 0) -> bytes:
        """The content of `hold.json`; `beat` counts the signs of life where they are in the content."""
        return (json.dumps(asdict(self) | {"beat": beat}, indent=1, ensure_ascii=True) + "\n").encode()

    def alive(self) -> bool | None:
        """Whether the process runs; None when that cannot be seen from here."""
        return ProcessId(self.machine, self.pid, self.started).alive()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.user}, since {self.since}: {self.command})"


def holder(layout: RunLayout) -> Holder | None:
    """Who holds the OUTPUT, None when nobody does; the process may be dead (see `Holder.alive`).

    Raises `StorageError`.
    """
    seen = SwapFile(layout.hold, layout.tmp_dir).read()
    return Holder.from_json(seen.data) if seen is not None else None


class Hold:
    """This process's hold on an OUTPUT, from `__enter__` to `__exit__`.

    `say` tells people a line. `beat` and `silence` are seconds.
    """

    def __init__(
        self,
        layout: RunLayout,
        *,
        say: Callable[[str], None],
        command: str | None = None,
        beat: float | None = None,
        silence: float = SILENCE,
    ) -> None:
        self.layout = layout
        self.me = Holder.mine(command if command is not None else command_line(sys.argv))
        self._say = say
        self._file = SwapFile(layout.hold, layout.tmp_dir)
        self._beat = beat if beat is not None else (_BEAT if layout.root.is_local else _REMOTE_BEAT)
        self._silence = silence
        self._tag: str | None = None
        self._beats = 0
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hold", daemon=True)

    def __enter__(self) -> "Hold":
        """Take the hold. Raises `HeldError` when another driver that lives has it, `StorageError`."""
        while self._tag is None:
            self._tag = self._create()
            if self._tag is None:
                self._tag = self._take_over()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(_LONGEST_BEAT)  # one under way would write the file again
        if self._tag is None or self._lost.is_set():
            return
        try:
            self._file.remove(self._tag)
        except StorageError as failure:
            self._say(f"{self.layout.hold} could not be removed ({failure}). A later driver takes over after a while.")

    @property
    def held(self) -> bool:
        """Whether this process has, or had to its end, the hold."""
        return self._tag is not None and not self._lost.is_set()

    def check(self) -> None:
        """Raise `HeldError` when another driver has taken over."""
        if self._lost.is_set():
            now = holder(self.layout)
            raise HeldError(
                f"Another driver has taken over {self.layout.root}: {now or 'it is gone again'}. This one gave no "
                "sign of life for too long, and has stopped; what it finished is kept."
            )

    def _create(self) -> str | None:
        data = self.me.to_json()
        if not self._file.conditional or self.layout.root.is_local:
            tag = self._file.create(data)
            if tag is not None and not self._file.conditional:
                self._no_conditions()
            return tag
        try:
            tag = self._file.create(data)
            # A store that does not know the condition writes all the same.
            honest = tag is None or self._file.create(data) is None
        except StorageError as error:
            if error.error_class != "storage":
                raise
            tag, honest = None, False
        if not honest:
            self._file.conditional = False
            self._no_conditions()
            if tag is None:
                return self._file.create(data)
        return tag

    def _no_conditions(self) -> None:
        self._say(
            f"The store of {self.layout.root} has no conditional writes: two drivers that begin in the same moment "
            "would not notice each other, and do some work twice. The table is right all the same."
        )

    def _take_over(self) -> str | None:
        """Replace the hold of a driver that is dead; None when it changed meanwhile. Raises `HeldError`."""
        seen = self._file.read()
        if seen is None:
            return None
        other = Holder.from_json(seen.data)
        if other is not None and other.token == self.me.token:
            return seen.tag  # it was written, and the answer got lost
        alive = other.alive() if other is not None else None
        if alive:
            raise self._held(other)
        who = str(other) if other is not None else "an unknown process"
        if alive is None:
            seen = self._wait(seen, who)
            if seen is None:
                return None
            line = f"{who} has given no sign of life for {self._silence:g} s; this driver takes over."
        else:
            line = f"{who} is dead; this driver takes over."
        tag = self._file.replace(self.me.to_json(), seen.tag)
        if tag is not None:
            self._say(line[:1].upper() + line[1:])
        return tag

    def _wait(self, seen: Seen, who: str) -> Seen | None:
        """Look whether a holder elsewhere lives; None when it has let go. Raises `HeldError` when it does."""
        self._say(
            f"{self.layout.root} is held by {who}; whether it lives is not to be seen from here. "
            f"Waiting up to {self._silence:g} s for a sign of life."
        )
        end = time.monotonic() + self._silence
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(self._beat / 2, left))
            now = self._file.read()
            if now is None:
                return None
            if now.sign != seen.sign:
                raise self._held(Holder.from_json(now.data))
        return seen

    def _held(self, other: Holder | None) -> HeldError:
        stop = f", or stop it there (kill {other.pid})" if other is not None else ""
        return HeldError(
            f"Another driver is at work in {self.layout.root}: {other or 'an unknown process'}. "
            f"Wait for it to end{stop}; then give the same command again."
        )

    def _watch(self) -> None:
        """Give signs of life until the end, and notice when the hold is somebody else's."""
        while not self._ended.wait(self._beat):
            try:
                self._give_sign()
            except Exception:  # whatever it is, the next one may succeed, and silence is noticed by others
                continue
            if self._lost.is_set():
                return

    def _give_sign(self) -> None:
        assert self._tag is not None
        self._beats += 1
        data = self.me.to_json(self._beats)
        tag = self._file.touch(data, self._tag)
        if tag is None:
            seen = self._file.read()
            now = Holder.from_json(seen.data) if seen is not None else None
            if seen is None:
                tag = self._file.create(data)  # somebody removed it, by hand
            elif now is not None and now.token == self.me.token:
                tag = seen.tag  # an answer got lost on its way: it was written
        if tag is None:
            self._lost.set()
        else:
            self._tag = tag


def command_line(arguments: list[str]) -> str:
    """The command as a person would write it, of bounded length and without credentials."""
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
