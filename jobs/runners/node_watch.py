"""Detects nodes that join or leave the cluster during a run, for messages and events.

Ray itself runs lost work elsewhere, and `replan` decides whether new nodes are worth restarting the pools for.
"""

from collections.abc import Callable, Mapping
from typing import Self

from jobs.watch import Watch

#: Seconds between two checks, which is about how fast Ray itself detects a change.
_EVERY = 5.0


class NodeWatch(Watch):
    """Checks the live nodes at intervals."""

    def __init__(
        self,
        nodes: Callable[[], Mapping[str, str]],
        changed: Callable[[str, str], None],
        *,
        every: float = _EVERY,
    ) -> None:
        """`nodes` returns the names of live nodes by id; `changed` gets `node_joined` or `node_lost`, and a name."""
        super().__init__("nodes", every)
        self._nodes, self._changed = nodes, changed
        self._known: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._known = dict(self._nodes())
        return super().__enter__()

    def look(self) -> None:
        """Report what has changed since the last check."""
        try:
            now, before = dict(self._nodes()), self._known
        except Exception:  # the head node does not answer, which the run itself will notice
            return
        self._known = now
        for node in before.keys() - now.keys():
            self._changed("node_lost", before[node])
        for node in now.keys() - before.keys():
            self._changed("node_joined", now[node])
