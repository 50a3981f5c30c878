"""Notices machines that join a cluster, and those that it loses, while a run goes on.

Knows names and a clock's beat; nothing of Ray. What is done about it is others' part: Ray runs what was
lost elsewhere, and `replan` looks whether more machines are worth starting over for.
"""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType

#: Seconds between two looks: as often as a cluster notices by itself.
_EVERY = 5.0


class NodeWatch:
    """Looks at the machines now and then, in a thread of its own. A context manager."""

    def __init__(
        self,
        nodes: Callable[[], Mapping[str, str]],
        changed: Callable[[str, str], None],
        *,
        every: float = _EVERY,
    ) -> None:
        """`nodes` are the live ones, ids and names; `changed` is told `node_joined` or `node_lost`, and a name."""
        self._nodes, self._changed, self._every = nodes, changed, every
        self._known: dict[str, str] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nodes", daemon=True)

    def __enter__(self) -> "NodeWatch":
        self._known = dict(self._nodes())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def look(self) -> None:
        """Tell what has changed since the last look."""
        now, before = dict(self._nodes()), self._known
        self._known = now
        for node in before.keys() - now.keys():
            self._changed("node_lost", before[node])
        for node in now.keys() - before.keys():
            self._changed("node_joined", now[node])

    def _watch(self) -> None:
        while not self._end.wait(self._every):
            try:
                self.look()
            except Exception:  # the head cannot be asked, which the run itself finds out
                continue
