"""Several sources as one archive: who holds an id, which columns are kept, what an empty one is told."""

from collections.abc import Sequence

import pyarrow as pa

from captioning.data.images import IMAGE_EXTENSIONS
from captioning.errors import InputError, StorageError
from captioning.run.sources.base import Source


def require_image(source: Source) -> InputError:
    """The error for a source in which no image was found, with what was found instead."""
    found = ", ".join(
        f"{count} {extension or 'without extension'}" for extension, count in source.skipped.most_common(5)
    )
    hint = f" Passed over: {found}." if found else ""
    for note in source.notes[:3]:
        hint += f" {note}"
    kinds = f": no file that ends in {', '.join(sorted(IMAGE_EXTENSIONS))}" if source.whole == "image" else ""
    return InputError(f"INPUT {source.given} holds no {source.whole}{kinds}.{hint}")


def kept_schema(sources: Sequence[Source]) -> pa.Schema:
    """The columns that the table takes over from sources that were opened together."""
    return sources[0].kept if sources else pa.schema([])


def find_kept(sources: Sequence[Source], wanted: Sequence[str]) -> pa.Schema:
    """The `wanted` columns of the sources with their types, in that order; of two types the first one met.

    Raises `InputError` for a column that no source has.
    """
    types: dict[str, pa.DataType] = {}
    for source in sources:
        types = {**source.kept_types(), **types}
    for name in wanted:
        if name not in types:
            raise InputError(
                f"input.keep_columns names {name!r}, but no INPUT is a Parquet or Arrow file with such a column."
            )
    return pa.schema([pa.field(name, types[name]) for name in wanted])


def first_holder(sources: Sequence[Source], image_id: str) -> Source | None:
    """The first source that has an image of this id: lists them again, for an error message only."""
    for source in sources:
        try:
            if any(entry.image_id == image_id for entry in source.entries()):
                return source
        except StorageError:
            continue
    return None
