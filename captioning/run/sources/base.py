"""What every kind of archive has in common. Knows none of them."""

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


class Before(Protocol):
    """An archive as it was listed before."""

    def stand(self, image_ids: Sequence[str], uris: Sequence[str]) -> tuple[Sequence[bool], Sequence[str | None]]:
        """For each id whether it was that of the image at the URI beside it; and the tar of the one that had it."""
        ...


@dataclass
class Source(ABC):
    """One INPUT. `skipped`, `repeated` and `notes` are what the last pass over `entries` found."""

    kind: ClassVar[str]
    """What `run.json` calls an archive of this kind."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """How the names of the files end, in lower case, that are an archive of this kind."""
    whole: ClassVar[str] = "image"
    """What it is that an archive of this kind holds none of when it is empty."""

    ids_by_order: ClassVar[bool] = False
    """Whether an image's id depends on which images came before it."""

    given: str
    """The INPUT as an absolute path or URI, with `NAME=` before it if it has one."""
    location: Location
    """What image ids are relative to: the directory, the glob's fixed part, the file."""
    prefix: str
    """`NAME/`, or nothing."""
    glob: Glob | None = field(default=None, kw_only=True)
    """The files meant, where they are several; else `location` is the one."""
    settings: InputSettings = field(default_factory=InputSettings, kw_only=True)
    kept: pa.Schema = field(default_factory=lambda: pa.schema([]), kw_only=True)
    """The columns that the table takes over, of all sources that were opened together."""
    before: "Before | None" = field(default=None, kw_only=True)
    """What the archive held when it was listed before: where ids go by order they stay with their images."""
    skipped: Counter[str] = field(default_factory=Counter, kw_only=True)
    """Files passed over for their extension, by extension (`""` for none)."""
    repeated: int = field(default=0, kw_only=True)
    """Lines of a list that came before."""
    notes: list[str] = field(default_factory=list, kw_only=True)
    """What a person should know of: a damaged tar, say."""

    def entries(self) -> Iterator[Entry]:
        """The images, in a fixed order. Raises `StorageError`, `InputError`."""
        self.skipped, self.repeated, self.notes = Counter(), 0, []
        return self._entries()

    def kept_types(self) -> Mapping[str, pa.DataType]:
        """The types of the columns of `settings.keep_columns` that this source has, as Parquet gives them back."""
        return {}

    @classmethod
    def means(cls, path: str) -> bool:
        """Whether a file of this path, in lower case, is one of this kind when a folder is searched."""
        return path.endswith(cls.suffixes)

    @abstractmethod
    def _entries(self) -> Iterator[Entry]: ...

    def _files(self) -> Iterator[tuple[FileInfo, Location]]:
        """The files meant, sorted by path, with where each is."""
        if self.glob is not None:
            for file in self.glob.files():
                yield file, self.glob.root / file.path
            return
        found = self.location.info()
        if found is None:
            raise InputError(f"{self.location} is gone.")
        yield found, self.location

    def _containers(self) -> Iterator[tuple[FileInfo, Location]]:
        """As `_files`, but those that are no archive of this kind are passed over and counted."""
        for file, location in self._files():
            if self.glob is None or self.means(file.path.lower()):
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
    """The extension of a file's name with its dot, in lower case; `""` where there is none."""
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return escape_name(f".{extension.lower()}") if dot and stem else ""
