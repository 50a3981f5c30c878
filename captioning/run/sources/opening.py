"""Opens INPUTs as sources: decides which kind of archive each one is.

A new kind of archive is a module beside this one and a line in `KINDS`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from captioning.errors import InputError
from captioning.run.globs import Glob, is_glob
from captioning.run.sources.base import Source
from captioning.run.sources.combined import find_kept
from captioning.run.sources.images import ImageSource
from captioning.run.sources.lists import ListSource
from captioning.run.sources.settings import InputSettings
from captioning.run.sources.tables import TableSource
from captioning.run.sources.tars import TarSource
from captioning.run.sources.uris import check_input
from captioning.storage import FileInfo, Location, StorageSettings

#: Every kind of archive; the first that applies to a folder or glob is taken.
KINDS: tuple[type[Source], ...] = (ImageSource, TarSource, TableSource, ListSource)

#: Kinds of a folder without images. Lists must be given by name.
_FOLDER_KINDS = (TarSource, TableSource)
#: The most files of a folder that are examined to decide its kind.
_MAX_FILES_SAMPLED = 10_000

_NAMED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.\-]*)=(.+)$", re.DOTALL)
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_sources(
    inputs: Sequence[str],
    storage: StorageSettings | None = None,
    settings: InputSettings | None = None,
    *,
    output: Location | None = None,
    kinds: Mapping[str, str] | None = None,
) -> list[Source]:
    """The sources of `inputs`, in order. Raises `InputError` for one that does not exist.

    Files of the run in `output` are excluded. `kinds` (`Source.kind` by `Source.given`) are the kinds that folders and
    globs had before, which do not change with what is added to them.
    """
    if not inputs:
        raise InputError("No INPUT was given: pass a directory, a glob, a tar, a table or a list of images.")
    settings = settings or InputSettings()
    sources = [_open(text, storage or StorageSettings(), settings, output, kinds or {}) for text in inputs]
    if settings.keep_columns:
        kept = find_kept(sources, settings.keep_columns)
        for source in sources:
            source.kept = kept
    return sources


def _open(
    text: str,
    storage: StorageSettings,
    settings: InputSettings,
    output: Location | None,
    kinds: Mapping[str, str],
) -> Source:
    name, text = _split_name(text, storage)
    prefix = name.replace("=", "/")
    location = Location.parse(text, storage)
    check_input(location)
    given = name + location.uri
    before = next((kind for kind in KINDS if kind.kind == kinds.get(given)), None)
    if is_glob(location.path) and not location.exists():
        glob = Glob.parse(location).without(output)
        kind = before or _kind_of_glob(glob)
        return kind(given, glob.root, prefix, glob=glob, settings=settings)
    found = location.info()
    # A key of an object store may be both a file and a folder: an empty object marks the folder.
    folder = found is not None and (text.endswith("/") or not found.size) and location.is_dir()
    if found is not None and not folder:
        return _kind_of_file(location)(given, location, prefix, settings=settings)
    if not location.is_dir():
        raise InputError(f"INPUT {location} does not exist. Check the spelling, and that the storage is mounted.")
    everything = Glob(location, "**").without(output)
    kind = before or _kind_of_files(everything.files(), location)
    return kind(given, location, prefix, glob=everything, settings=settings)


def _split_name(text: str, storage: StorageSettings) -> tuple[str, str]:
    """`NAME=` (or "") and the rest; an existing path that contains an equals sign has no name."""
    named = _NAMED.match(text)
    if named is None:
        return "", text
    location = Location.parse(text, storage)
    if location.exists() or (is_glob(text) and _is_path(Glob.parse(location), named[1] + "=")):
        return "", text
    return named[1] + "=", named[2]


def _is_path(glob: Glob, start: str) -> bool:
    """Whether a glob whose text begins with `start` (`NAME=`) matches files as a path."""
    if glob.pattern.startswith(start):
        return next(glob.files(), None) is not None
    return glob.root.is_dir()


def _kind_of_file(location: Location) -> type[Source]:
    name = location.name.lower()
    for kind in KINDS:
        if name.endswith(kind.suffixes):
            return kind
    if name.endswith(_COMPRESSED_TARS):
        raise InputError(
            f"INPUT {location} is a compressed tar: its images cannot be read individually. Decompress it."
        )
    raise InputError(
        f"INPUT {location} is not an image, .tar, .parquet, .arrow or .txt list. Pass a directory, a glob, an image, "
        "a WebDataset tar, a Parquet or Arrow file, or a text file with a path or URI on each line."
    )


def _kind_of_glob(glob: Glob) -> type[Source]:
    for kind in KINDS:
        if glob.pattern.lower().endswith(kind.suffixes):
            return kind
    return _kind_of_files(glob.files(), glob.root)


def _kind_of_files(files: Iterable[FileInfo], folder: Location) -> type[Source]:
    """The kind of an archive by its files: images, if there is one."""
    found: Counter[type[Source]] = Counter()
    for file, _ in zip(files, range(_MAX_FILES_SAMPLED), strict=False):
        name = file.path.lower()
        if name.endswith(ImageSource.suffixes):
            return ImageSource
        found.update(kind for kind in _FOLDER_KINDS if kind.matches(name))
    if len(found) > 1:
        raise InputError(
            f"There are both tars and Parquet or Arrow files in {folder}. Choose which to use: "
            f"{folder}/**/*.tar, or {folder}/**/*.parquet, or both as two INPUTs."
        )
    return next(iter(found), ImageSource)
