"""Counts problems in a dataset by kind, such as "empty captions", with the first few places of each."""

from collections.abc import Iterable

_EXAMPLES = 3


class Problems:
    """Counts and examples of what a dataset's reader skipped or repaired."""

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
        """Add the counts and examples of `other`."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            shown = self.examples.setdefault(kind, [])
            shown += other.examples[kind][: _EXAMPLES - len(shown)]

    def lines(self) -> list[str]:
        """One readable line per kind, in the order of first occurrence."""
        lines = []
        for kind, count in self.counts.items():
            shown = self.examples[kind]
            more = ", …" if count > len(shown) else ""
            lines.append(f"{count:,} {kind}: {', '.join(shown)}{more}")
        return lines

    def __bool__(self) -> bool:
        return bool(self.counts)
