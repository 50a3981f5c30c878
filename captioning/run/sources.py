"""The inputs of a run: what a person names becomes a stream of entries, one an image.

A directory, an image, a glob, WebDataset tars, a text list of paths or URIs, each with an
optional `NAME=` before it. Entries come in a fixed order (every listing sorted). This module
lists; it does not read images, and knows nothing of the index that is made of the entries.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from captioning.data.images import IMAGE_EXTENSIONS
from captioning.errors import InputError, StorageError
from captioning.run.digests import DigestSet, digests
from captioning.run.globs import Glob, is_glob
from captioning.run.tars import TarMember, list_tar
from captioning.storage import Location, StorageSettings, escape_name

_NAMED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.\-]*)=(.+)$", re.DOTALL)
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Entry:
    """One image of the archive: its id, and where its bytes are.

    `size_bytes` is None when the listing does not say (a line of a text list); `version` changes
    with the content (an ETag, a time of modification) and is empty when not known. For an image in
    a tar, `tar` is the tar's URI, `offset` the place of the image's first byte in it, and `version`
    the time that the tar gives it: a tar that is added to changes no image that was in it.
    """

    image_id: str
    uri: str
    size_bytes: int | None = None
    version: str = ""
    tar: str | None = None
    offset: int | None = None


@dataclass
class Source(ABC):
    """One INPUT. `skipped`, `repeated` and `notes` are what the last pass over `entries` found."""

    given: str
    """The INPUT as an absolute path or URI, with `NAME=` before it if it has one."""
    location: Location
    """What image ids are relative to: the directory, the glob's fixed part, the list."""
    prefix: str
    """`NAME/`, or nothing."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files passed over for their extension, by extension (`""` for none)."""
    repeated: int = 0
    """Lines of a list that came before."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of: a damaged tar, say."""

    def entries(self) -> Iterator[Entry]:
        """The images, in a fixed order. Raises `StorageError`, `InputError`."""
        self.skipped, self.repeated, self.notes = Counter(), 0, []
        return self._entries()

    @abstractmethod
    def _entries(self) -> Iterator[Entry]: ...

    def _is_image(self, name: str) -> bool:
        extension = _extension(name)
        if extension in IMAGE_EXTENSIONS:
            return True
        self.skipped[extension] += 1
        return False


class DirectorySource(Source):
    """Every image below a directory; the id is the path below it."""

    def _entries(self) -> Iterator[Entry]:
        for file in self.location.walk():
            if self._is_image(file.path):
                yield Entry(
                    self.prefix + escape_name(file.path), (self.location / file.path).uri, file.size, file.version
                )


class FileSource(Source):
    """One image; the id is its name."""

    def _entries(self) -> Iterator[Entry]:
        file = self.location.info()
        if file is None:
            raise InputError(f"{self.location} is gone.")
        yield Entry(self.prefix + escape_name(file.path), self.location.uri, file.size, file.version)


@dataclass
class GlobSource(Source):
    """Every image that matches a pattern; the id is the path below the pattern's fixed part."""

    glob: Glob = field(kw_only=True)

    def _entries(self) -> Iterator[Entry]:
        for file in self.glob.files():
            if self._is_image(file.path):
                yield Entry(
                    self.prefix + escape_name(file.path), (self.location / file.path).uri, file.size, file.version
                )


@dataclass
class TarSource(Source):
    """WebDataset tars, one or a glob of them; the id is a sample's key.

    Where a key came before, in this tar or in one before it, the id is `TAR/KEY`, and where even
    that did (two images in one sample) `TAR/MEMBER`.
    """

    glob: Glob | None = field(default=None, kw_only=True)

    def _entries(self) -> Iterator[Entry]:
        seen = DigestSet()
        for name, tar in self._tars():
            for member in list_tar(tar, self.notes.append):
                if self._is_image(member.name):
                    image_id = _tar_id(name, member, seen)
                    uri = f"{tar.uri}#{escape_name(member.name)}"
                    yield Entry(self.prefix + image_id, uri, member.size, str(member.mtime), tar.uri, member.offset)

    def _tars(self) -> Iterator[tuple[str, Location]]:
        if self.glob is None:
            yield self.location.name, self.location
            return
        for file in self.glob.files():
            yield file.path, self.location / file.path


class ListSource(Source):
    """A text file with a path or URI on each line; the id is the line.

    A relative path is taken from the list's own folder. Empty lines are passed over, and lines
    that came before are counted.
    """

    def _entries(self) -> Iterator[Entry]:
        seen = DigestSet()
        folder = self.location.parent
        for raw in self.location.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines():
            line = raw.decode("utf-8", "surrogateescape").strip()
            if not line:
                continue
            image_id = escape_name(line)
            if not seen.add(digests([image_id]))[0]:
                self.repeated += 1
                continue
            relative = "://" not in line and not line.startswith(("/", "~"))
            found = folder / line if relative else Location.parse(line, self.location.settings)
            yield Entry(self.prefix + image_id, found.uri)


def open_sources(inputs: Sequence[str], storage: StorageSettings | None = None) -> list[Source]:
    """The sources that `inputs` name, in their order. Raises `InputError` for one that is not there."""
    if not inputs:
        raise InputError("No INPUT was given: name a directory, a glob, a tar or a list of images.")
    return [_open(text, storage or StorageSettings()) for text in inputs]


def _open(text: str, storage: StorageSettings) -> Source:
    named = _NAMED.match(text)
    if named and not Location.parse(text, storage).exists():
        name, text = named[1] + "=", named[2]
    else:
        name = ""
    prefix = name.replace("=", "/")
    location = Location.parse(text, storage)
    given = name + location.uri
    if is_glob(location.path) and not location.exists():
        glob = Glob.parse(location)
        if location.path.endswith(".tar"):
            return TarSource(given, glob.root, prefix, glob=glob)
        return GlobSource(given, glob.root, prefix, glob=glob)
    if location.info() is None:
        if location.is_dir():
            return DirectorySource(given, location, prefix)
        raise InputError(f"There is nothing at INPUT {location}. Check the spelling, and that the storage is mounted.")
    return _open_file(given, location, prefix)


def _open_file(given: str, location: Location, prefix: str) -> Source:
    name = location.name.lower()
    if name.endswith(".tar"):
        return TarSource(given, location, prefix)
    if name.endswith(".txt"):
        return ListSource(given, location, prefix)
    if _extension(name) in IMAGE_EXTENSIONS:
        return FileSource(given, location, prefix)
    if name.endswith(_COMPRESSED_TARS):
        raise InputError(f"INPUT {location} is a compressed tar: its images cannot be reached singly. Unpack it.")
    raise InputError(
        f"INPUT {location} is no image, .tar or .txt list. Give a directory, a glob, an image, "
        "a WebDataset tar, or a text file with a path or URI on each line."
    )


def require_image(source: Source) -> InputError:
    """The error for a source in which no image was found, with what was found instead."""
    found = ", ".join(
        f"{count} {extension or 'without extension'}" for extension, count in source.skipped.most_common(5)
    )
    hint = f" Passed over: {found}." if found else ""
    if ".tar" in source.skipped:
        hint += f" Tars are read when named: {source.location}/*.tar"
    for note in source.notes[:3]:
        hint += f" {note}"
    kinds = ", ".join(sorted(IMAGE_EXTENSIONS))
    return InputError(f"INPUT {source.given} holds no image: no file that ends in {kinds}.{hint}")


def _extension(name: str) -> str:
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return escape_name(f".{extension.lower()}") if dot and stem else ""


def _tar_id(tar_name: str, member: TarMember, seen: DigestSet) -> str:
    tar_name = escape_name(tar_name.removesuffix(".tar"))
    name = escape_name(member.name)
    for image_id in (escape_name(member.key), f"{tar_name}/{escape_name(member.key)}", f"{tar_name}/{name}"):
        if seen.add(digests([image_id]))[0]:
            return image_id
    return f"{tar_name}/{name}#{member.offset}"


def first_holder(sources: Sequence[Source], image_id: str) -> Source | None:
    """The first source that has an image of this id: lists them again, for an error message only."""
    for source in sources:
        try:
            if any(entry.image_id == image_id for entry in source.entries()):
                return source
        except StorageError:
            continue
    return None
