"""Glob patterns over local folders and object stores alike.

`*` and `?` stay within one name, `**` spans folders, `[abc]` and `{jpg,png}` are alternatives,
`{000..128}` is a range of numbers.
Knows nothing of images.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from captioning.storage import FileInfo, Location

_SPECIAL = re.compile(r"[*?\[{]")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_glob(text: str) -> bool:
    """Whether `text` has a character that makes it a pattern."""
    return _SPECIAL.search(text) is not None


@dataclass(frozen=True)
class Glob:
    """A pattern below `root`, the folder that its fixed part names."""

    root: Location
    pattern: str

    @classmethod
    def parse(cls, location: Location) -> "Glob":
        """Split at the first component with a special character."""
        match = _SPECIAL.search(location.path)
        assert match is not None
        folder, _, _ = location.path[: match.start()].rpartition("/")
        return cls(Location(folder or "/", location.settings), location.path[len(folder) :].removeprefix("/"))

    def files(self) -> Iterator[FileInfo]:
        """The files that match, sorted, with paths relative to `root`; nothing when there is no `root`."""
        if not self.root.is_dir():
            return
        wanted = re.compile(_translate(self.pattern), re.DOTALL)
        depth = None if "**" in self.pattern else self.pattern.count("/") + 1
        for file in self.root.walk(depth):
            if wanted.fullmatch(file.path):
                yield file


def _translate(pattern: str) -> str:
    """The regular expression of a glob pattern."""
    out = ""
    at = 0
    braces = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            if pattern.startswith("*/", at):
                out, at = out + "(?:.*/)?", at + 2
            elif pattern.startswith("*", at):
                out, at = out + ".*", at + 1
            else:
                out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif character == "[" and (end := pattern.find("]", at + 1)) > 0:
            inside = pattern[at:end].replace("\\", "\\\\").replace("[", "\\[")
            out += "[^/" + inside[1:] + "]" if inside[0] in "!^" else "[" + inside + "]"
            at = end + 1
        elif character == "{" and (numbers := _RANGE.match(pattern, at - 1)):
            out += f"(?:{'|'.join(_numbers(numbers[1], numbers[2]))})"
            at = numbers.end()
        elif character == "{" and "}" in pattern[at:]:
            out, braces = out + "(?:", braces + 1
        elif character == "," and braces:
            out += "|"
        elif character == "}" and braces:
            out, braces = out + ")", braces - 1
        else:
            out += re.escape(character)
    return out


def _numbers(first: str, last: str) -> list[str]:
    """The numbers of `{first..last}`, padded with zeros as `first` is."""
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
