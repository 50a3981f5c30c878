"""Sources combined into one archive: its kept columns, and the error for a source without images."""

from collections.abc import Sequence

import pyarrow as pa

from captioning.data.images import IMAGE_EXTENSIONS
from captioning.errors import InputError
from captioning.run.sources.base import Source


def no_images_error(source: Source) -> InputError:
    """The error for a source without images, which says what was found instead."""
    found = ", ".join(
        f"{count} {extension or 'without extension'}" for extension, count in source.skipped.most_common(5)
    )
    hint = f" Skipped: {found}." if found else ""
    for note in source.notes[:3]:
        hint += f" {note}"
    kinds = f": no file that ends in {', '.join(sorted(IMAGE_EXTENSIONS))}" if source.content == "image" else ""
    return InputError(f"INPUT {source.given} contains no {source.content}{kinds}.{hint}")


def kept_schema(sources: Sequence[Source]) -> pa.Schema:
    """The kept columns of sources that were opened together."""
    return sources[0].kept if sources else pa.schema([])


def find_kept(sources: Sequence[Source], wanted: Sequence[str]) -> pa.Schema:
    """The `wanted` columns with their types, in that order; if types differ, the first source's.

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
