"""Names of images in an export: from an id to a safe and unique relative path.

Ids come from file names, tars and lists, and may contain anything. A path made here has no `..`, no leading
slash, no backslash and no control character, keeps the id where possible, and is unique: if two images would
share one (`a.jpg` and `a.png` as `a.txt`), both keep their extension.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from captioning.data.images import IMAGE_EXTENSIONS
from captioning.run.digests import digests

#: The folder of an export's own state, see `target`.
STATE_FOLDER = ".captioning-export"

#: File systems allow 255 bytes per name; some are reserved for an extension.
_MAX_NAME_BYTES = 230
_MAX_EXTENSION = 12
_BUCKETS = 64

#: A percent sign that would read as one of our escapes, and so is escaped itself.
_LOOKS_ESCAPED = re.compile(r"%(?=[0-9A-Fa-f]{2}|~)")
#: Control characters, and the backslash that some readers take for a slash.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


def split_extension(name: str) -> tuple[str, str]:
    """`name` without its extension, and the extension as written (`.jpg`) if it is an image's, else ""."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    if not stem or f".{extension.lower()}" not in IMAGE_EXTENSIONS:
        return name, ""
    return folder + slash + stem, dot + extension


def safe_path(name: str, *, visible: bool = False) -> str:
    """`name` as a relative path that stays below its root; different names give different paths.

    Characters that are not allowed in a path are written as `%XX`. With `visible`, so is a prefix that hides a file
    (a leading dot or `__`).
    """
    return "/".join(_component(part, visible) for part in name.split("/"))


def _component(part: str, visible: bool) -> str:
    part = _LOOKS_ESCAPED.sub("%25", part)
    if part in ("", ".", ".."):
        return "%2F" if not part else "%2E" * len(part)
    part = _CONTROL.sub(lambda match: f"%{ord(match[0]):02X}", part)
    if part == STATE_FOLDER or (visible and part.startswith((".", "__"))):
        part = f"%{ord(part[0]):02X}" + part[1:]
    raw = part.encode("utf-8", "surrogatepass")
    if len(raw) > _MAX_NAME_BYTES:
        part = raw[: _MAX_NAME_BYTES - 18].decode("utf-8", "ignore") + "%~" + hashlib.sha256(raw).hexdigest()[:16]
    return part


@dataclass(frozen=True)
class Names:
    """The names of a run's images. `shared` are the sorted digests of names that several images would have."""

    shared: NDArray[np.uint64]

    @classmethod
    def none(cls) -> "Names":
        """Names without any collision."""
        return cls(np.empty(0, np.uint64))

    def version(self, of_part: str) -> str:
        """A string that changes with `of_part`, and when images get different names."""
        if not len(self.shared):
            return of_part
        return hashlib.sha256(of_part.encode() + self.shared.tobytes()).hexdigest()[:12]

    def keeps_extension(self, image_id: str) -> bool:
        """Whether another image would have the same name without its extension."""
        return self._is_shared(split_extension(image_id)[0])

    def key(self, image_id: str, *, visible: bool = False) -> str:
        """The image's path without its extension, or with it if another image would have the same path."""
        stem, _ = split_extension(image_id)
        return safe_path(image_id if self._is_shared(stem) else stem, visible=visible)

    def image(self, image_id: str, uri: str, *, visible: bool = False) -> str:
        """The path of the image file: the id, with the extension of its `uri` if it has none."""
        stem, extension = split_extension(image_id)
        if extension:
            return safe_path(stem, visible=visible) + extension
        mark = "%~" if self._is_shared(stem) else ""
        return safe_path(stem, visible=visible) + mark + extension_of(image_id, uri)

    def _is_shared(self, name: str) -> bool:
        if not len(self.shared):
            return False
        value = digests([name])["high"][0]
        at = int(np.searchsorted(self.shared, value))
        return at < len(self.shared) and bool(self.shared[at] == value)


def extension_of(image_id: str, uri: str) -> str:
    """The image's extension in lower case, from its id or its URI; `.jpg` if neither has one."""
    for text in (image_id, uri.partition("#")[2] or uri, uri.partition("?")[0]):
        _, extension = split_extension(text)
        if extension and len(extension) <= _MAX_EXTENSION:
            return extension.lower()
    return ".jpg"


def find_names(ids: Iterable[Sequence[str]]) -> Names:
    """The names for all images of a run, whose ids come in batches.

    Two digests per image are sorted in buckets on disk, so that memory is bounded for any archive.
    """
    with tempfile.TemporaryDirectory(prefix="captioning-names-") as folder, ExitStack() as stack:
        paths = [Path(folder) / str(bucket) for bucket in range(_BUCKETS)]
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        for batch in ids:
            _write_buckets(batch, files)
        for file in files:
            file.flush()
        found = [_repeated(np.fromfile(path, np.uint64)) for path in paths]
    return Names(np.sort(np.concatenate(found)))


def _write_buckets(batch: Sequence[str], files: Sequence[IO[bytes]]) -> None:
    stems = [split_extension(image_id)[0] for image_id in batch]
    # An id without an extension equals its stem: add only one digest, or it would collide with itself.
    texts = stems + [image_id for image_id, stem in zip(batch, stems, strict=True) if image_id != stem]
    if not texts:
        return
    values = np.sort(digests(texts)["high"])
    edges = np.searchsorted(values >> np.uint64(58), np.arange(_BUCKETS + 1))
    for file, start, stop in zip(files, edges[:-1], edges[1:], strict=True):
        if stop > start:
            file.write(values[start:stop].tobytes())


def _repeated(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values.sort()
    return np.unique(values[1:][values[1:] == values[:-1]])
