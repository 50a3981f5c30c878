"""What is wrong in a dataset, counted by kind, with the first few places where it was found.

Knows nothing of annotations or images: a kind is a plain sentence part such as "empty captions".
"""

from collections.abc import Iterable

_EXAMPLES = 3


class Problems:
    """Counts and examples of what a dataset's reader passed over or put right."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, where: str) -> None:
        """Count one more of `kind`, found at `where`."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _EXAMPLES:
            shown.append(where)

    def add_all(self, kind: str, places: Iterable[str]) -> None:
        """Count one of `kind` for each of `places`."""
        for where in places:
            self.add(kind, where)

    def merge(self, other: "Problems") -> None:
        """Add what `other` counted."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            shown = self.examples.setdefault(kind, [])
            shown += other.examples[kind][: _EXAMPLES - len(shown)]

    def lines(self) -> list[str]:
        """One readable line a kind, in the order in which the kinds were met."""
        lines = []
        for kind, count in self.counts.items():
            shown = self.examples[kind]
            more = ", …" if count > len(shown) else ""
            lines.append(f"{count:,} {kind}: {', '.join(shown)}{more}")
        return lines

    def __bool__(self) -> bool:
        return bool(self.counts)
