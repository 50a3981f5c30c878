"""The base class of all kinds of archives."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import pyarrow as pa

from captioning.data.images import IMAGE_EXTENSIONS
from captioning.errors import InputError
from captioning.run.globs import Glob
from captioning.run.sources.entry import Entry
from captioning.run.sources.settings import InputSettings
from captioning.storage import FileInfo, Location, escape_name


class PreviousListing(Protocol):
    """What an earlier listing of the archive found."""

    def lookup(self, image_ids: Sequence[str], uris: Sequence[str]) -> tuple[Sequence[bool], Sequence[str | None]]:
        """For each id: whether the image at the URI beside it had it, and the tar of the image that had it."""
        ...


@dataclass
class Source(ABC):
    """One INPUT. `skipped`, `repeated` and `notes` are findings of the last pass over `entries`."""

    kind: ClassVar[str]
    """The name of this kind of archive in `run.json`."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes, in lower case, of files of this kind."""
    content: ClassVar[str] = "image"
    """What an archive of this kind contains, for the message that it contains none."""

    ids_depend_on_order: ClassVar[bool] = False
    """Whether an image's id depends on which images came before it."""

    given: str
    """The INPUT as an absolute path or URI, with `NAME=` before it if it has one."""
    location: Location
    """What image ids are relative to: the folder, the glob's fixed part, or the file."""
    prefix: str
    """`NAME/` of a named INPUT, else ""."""
    glob: Glob | None = field(default=None, kw_only=True)
    """The pattern of several files; for a single file, `location`, it is None."""
    settings: InputSettings = field(default_factory=InputSettings, kw_only=True)
    kept: pa.Schema = field(default_factory=lambda: pa.schema([]), kw_only=True)
    """The kept columns of all sources that were opened together."""
    previous: "PreviousListing | None" = field(default=None, kw_only=True)
    """An earlier listing, so that images keep their ids where ids depend on the order of listing."""
    skipped: Counter[str] = field(default_factory=Counter, kw_only=True)
    """Numbers of files skipped for their extension, by extension (`""` for none)."""
    repeated: int = field(default=0, kw_only=True)
    """The number of lines of a list that repeat earlier ones."""
    notes: list[str] = field(default_factory=list, kw_only=True)
    """Messages to show to the user, such as one about a damaged tar."""

    def entries(self) -> Iterator[Entry]:
        """The images, in a fixed order. Raises `StorageError`, `InputError`."""
        self.skipped, self.repeated, self.notes = Counter(), 0, []
        return self._entries()

    def kept_types(self) -> Mapping[str, pa.DataType]:
        """The types of those columns of `settings.keep_columns` that this source has, as Parquet reads them back."""
        return {}

    @classmethod
    def matches(cls, path: str) -> bool:
        """Whether a file found in a folder, given its path in lower case, is of this kind."""
        return path.endswith(cls.suffixes)

    @abstractmethod
    def _entries(self) -> Iterator[Entry]: ...

    def _files(self) -> Iterator[tuple[FileInfo, Location]]:
        """The files of the INPUT, sorted by path, with the location of each."""
        if self.glob is not None:
            for file in self.glob.files():
                yield file, self.glob.root / file.path
            return
        found = self.location.info()
        if found is None:
            raise InputError(f"{self.location} no longer exists.")
        yield found, self.location

    def _containers(self) -> Iterator[tuple[FileInfo, Location]]:
        """As `_files`, but files of other kinds are skipped and counted."""
        for file, location in self._files():
            if self.glob is None or self.matches(file.path.lower()):
                yield file, location
            else:
                self.skipped[extension_of(file.path)] += 1

    def _is_image(self, name: str) -> bool:
        extension = extension_of(name)
        if extension in IMAGE_EXTENSIONS:
            return True
        self.skipped[extension] += 1
        return False


def extension_of(name: str) -> str:
    """The extension of a file name with its dot, in lower case; `""` if it has none."""
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return escape_name(f".{extension.lower()}") if dot and stem else ""
