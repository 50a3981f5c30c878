"""Glob patterns for local folders and object stores.

`*` and `?` match within one name, `**` spans folders, `[abc]` and `{jpg,png}` are alternatives, `{000..128}` is a
range of numbers (`{000..128..2}` with a step), and `{a..f}` one of letters.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from captioning.errors import InputError
from captioning.run.layout import is_run_file
from captioning.storage import FileInfo, Location

_SPECIAL = re.compile(r"[*?\[{]")
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})(?:\.\.(\d{1,18}))?\}")
_LETTERS = re.compile(r"\{([a-z])\.\.([a-z])\}|\{([A-Z])\.\.([A-Z])\}")


def is_glob(text: str) -> bool:
    """Whether `text` has a character that makes it a pattern."""
    return _SPECIAL.search(text) is not None


@dataclass(frozen=True)
class Glob:
    """A pattern below `root`, the folder of its fixed part."""

    root: Location
    pattern: str
    output: str | None = None
    """An OUTPUT below `root` (with a trailing slash, "" for `root` itself), the files of whose run are excluded."""

    @classmethod
    def parse(cls, location: Location) -> "Glob":
        """Split at the first component with a special character, unless a folder has that very name.

        Raises `InputError` if that component is a bucket.
        """
        at = -1
        while (match := _SPECIAL.search(location.path, at + 1)) is not None:
            folder, _, _ = location.path[: match.start()].rpartition("/")
            at = location.path.find("/", match.start())
            if at < 0 or folder.endswith(":/") or not Location(location.path[:at], location.settings).is_dir():
                break
        assert match is not None, "the last component exists, and is no pattern"
        if folder.endswith(":/"):
            raise InputError(
                f"{location}: a bucket's name cannot be a pattern. Name the bucket, or pass several INPUTs."
            )
        return cls(Location(folder or "/", location.settings), location.path[len(folder) :].removeprefix("/"))

    def without(self, output: Location | None) -> "Glob":
        """The same pattern, excluding the files of the run in `output`."""
        root = self.root.path.rstrip("/") + "/"
        if output is None or not f"{output.path}/".startswith(root):
            return self
        return replace(self, output=f"{output.path}/".removeprefix(root))

    def files(self) -> Iterator[FileInfo]:
        """The files that match, sorted, with paths relative to `root`; none if `root` does not exist."""
        if not self.root.is_dir():
            return
        wanted = _Pattern(self.pattern)
        depth = None if "**" in self.pattern else self.pattern.count("/") + 1
        for file in self.root.walk(depth, _folder_filter(self.pattern)):
            if wanted.matches(file.path) and not self._is_of_run(file.path):
                yield file

    def _is_of_run(self, path: str) -> bool:
        return self.output is not None and path.startswith(self.output) and is_run_file(path.removeprefix(self.output))


class _FolderFilter:
    """Whether a folder can contain a match, by the pattern's first components."""

    def __init__(self, components: list[str]) -> None:
        self._patterns = [_Pattern("/".join(components[: at + 1])) for at in range(len(components))]

    def __call__(self, folder: str) -> bool:
        depth = folder.count("/")
        return depth >= len(self._patterns) or self._patterns[depth].matches(folder)


def _folder_filter(pattern: str) -> _FolderFilter:
    components = pattern.split("/")[:-1]
    if re.search(r"\{[^}]*/|\[[^]]*/", pattern):
        return _FolderFilter([])  # alternatives that span folders
    free = next((at for at, component in enumerate(components) if "**" in component), len(components))
    return _FolderFilter(components[:free])


class _Pattern:
    """A compiled pattern. Ranges of numbers are compared as numbers, not expanded."""

    def __init__(self, pattern: str) -> None:
        self._ranges: list[tuple[range, int]] = []
        try:
            self._regex = re.compile(self._translate(pattern), re.DOTALL)
        except re.error as error:
            raise InputError(f"The pattern {pattern} is not valid: {error}.") from None

    def matches(self, path: str) -> bool:
        """Whether the whole of `path` matches."""
        found = self._regex.fullmatch(path)
        return found is not None and all(
            text is None or _is_in(text, numbers, width)
            for text, (numbers, width) in zip(found.groups(), self._ranges, strict=True)
        )

    def _translate(self, pattern: str) -> str:
        """The pattern as a regular expression, with a group for every range of numbers."""
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
                self._ranges.append(_range(numbers[1], numbers[2], numbers[3]))
                out, at = out + r"(\d+)", numbers.end()
            elif character == "{" and (letters := _LETTERS.match(pattern, at - 1)):
                first, last = sorted(filter(None, letters.groups()))
                out, at = out + f"[{first}-{last}]", letters.end()
            elif character == "{" and "}" in pattern[at:]:
                out, braces = out + "(?:", braces + 1
            elif character == "," and braces:
                out += "|"
            elif character == "}" and braces:
                out, braces = out + ")", braces - 1
            else:
                out += re.escape(character)
        return out


def _range(first: str, last: str, step: str | None) -> tuple[range, int]:
    """The numbers of `{first..last..step}`, and the width of their zero padding, 0 for none."""
    width = max(len(text) if text.startswith("0") and len(text) > 1 else 0 for text in (first, last))
    low, high = sorted((int(first), int(last)))
    stride = max(int(step or 1), 1)
    if int(first) > int(last):
        low += (high - low) % stride  # counted down, from the first
    return range(low, high + 1, stride), width


def _is_in(text: str, numbers: range, width: int) -> bool:
    number = int(text) if len(text) < 20 else -1
    return number in numbers and text == f"{number:0{width}d}"
