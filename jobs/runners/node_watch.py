"""Notices machines that join a cluster, and those that it loses, while a run goes on.

Knows names and a clock's beat; nothing of Ray. What is done about it is others' part: Ray runs what was
lost elsewhere, and `replan` looks whether more machines are worth starting over for.
"""

from collections.abc import Callable, Mapping
from typing import Self

from jobs.watch import Watch

#: Seconds between two looks: as often as a cluster notices by itself.
_EVERY = 5.0


class NodeWatch(Watch):
    """Looks at the machines now and then."""

    def __init__(
        self,
        nodes: Callable[[], Mapping[str, str]],
        changed: Callable[[str, str], None],
        *,
        every: float = _EVERY,
    ) -> None:
        """`nodes` are the live ones, ids and names; `changed` is told `node_joined` or `node_lost`, and a name."""
        super().__init__("nodes", every)
        self._nodes, self._changed = nodes, changed
        self._known: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._known = dict(self._nodes())
        return super().__enter__()

    def look(self) -> None:
        """Tell what has changed since the last look."""
        try:
            now, before = dict(self._nodes()), self._known
        except Exception:  # the head cannot be asked, which the run itself finds out
            return
        self._known = now
        for node in before.keys() - now.keys():
            self._changed("node_lost", before[node])
        for node in now.keys() - before.keys():
            self._changed("node_joined", now[node])
