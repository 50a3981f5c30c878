"""Columns of an archive's tables: which holds the images, and their values as ids, URIs and kept values.

Knows Arrow's types; knows nothing of files.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.errors import InputError
from captioning.storage import Location

#: Text columns of these names, in any case, are taken for paths or URIs of images.
_URI_NAMES = frozenset(
    {"uri", "url", "path", "image", "image_uri", "image_url", "image_path", "file", "file_name", "filename", "filepath"}
)


def image_column(schema: pa.Schema, wanted: str | None, location: Location) -> str:
    """The column of images: `wanted`, else the only one that can be meant. Raises `InputError`.

    That is the only column of bytes or of what Hugging Face `datasets` writes (`bytes` and
    `path`), else the only text column with a name such as `uri` or `path`.
    """
    if wanted is not None:
        require_column(schema, wanted, "input.image_column", location)
        kind = schema.field(wanted).type
        if _holds_bytes(kind) or holds_uris(kind):
            return wanted
        raise InputError(
            f"input.image_column is {wanted!r}, but in {location} that column holds {_plain_type(kind)}: images are "
            f"bytes, or text that is a path or URI. {_listed(schema)}"
        )
    for candidates in (
        [field.name for field in schema if _holds_bytes(field.type)],
        [field.name for field in schema if holds_uris(field.type) and field.name.lower() in _URI_NAMES],
    ):
        if len(candidates) == 1:
            return str(candidates[0])
        if candidates:
            raise InputError(
                f"{location} has several columns that may hold the images: {', '.join(candidates)}. Say which: "
                f"--set input.image_column={candidates[0]}"
            )
    raise InputError(
        f"No column of {location} is known to hold images: none of bytes, none of text with a name such as uri or "
        f"path. Say which with --set input.image_column=NAME. {_listed(schema)}"
    )


def require_column(schema: pa.Schema, name: str, setting: str, location: Location) -> None:
    """Raise `InputError` unless there is exactly one column of this name."""
    count = schema.names.count(name)
    if count != 1:
        found = "no such column" if not count else f"{count} columns of that name"
        raise InputError(f"{setting} is {name!r}, but {location} has {found}. {_listed(schema)}")


def holds_uris(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return _is_text(_plain_type(kind))


def texts(values: pa.Array, name: str, location: Location) -> list[str | None]:
    """Text, bytes or whole numbers as text; bytes that are not UTF-8 as surrogate escapes."""
    kind = _plain_type(values.type)
    if pa.types.is_integer(kind):
        return [None if value is None else str(value) for value in values.cast(kind).to_pylist()]
    if not _is_text(kind) and not _is_bytes(kind):
        raise InputError(
            f"Column {name!r} of {location} holds {kind}, which is no image id: ids are text or whole numbers. "
            "Give another input.id_column."
        )
    raw: Sequence[bytes | None] = _storage(values).cast(kind).cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def kept_type(field: pa.Field) -> pa.DataType:
    """The type that a column has once it was written to Parquet and read back."""
    buffer = io.BytesIO()
    plain = pa.schema([pa.field("kept", _plain_type(field.type))])
    try:
        pq.write_table(plain.empty_table(), buffer)
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"input.keep_columns names {field.name!r}: {field.type} has no place in Parquet.") from error
    return pq.read_schema(buffer).field(0).type


def as_kept(values: pa.Array, kind: pa.DataType, name: str, location: Location) -> pa.Array:
    """The values of a column as the table keeps them. Raises `InputError` where they cannot be of that type."""
    try:
        found = _storage(values).cast(_plain_type(values.type)).cast(kind)
    except pa.ArrowException as error:
        raise InputError(
            f"Column {name!r} of {location} holds {values.type} where the files before hold {kind}, and its values "
            f"do not fit: {error}. Leave it out of input.keep_columns."
        ) from error
    if _is_text(kind):
        try:
            found.validate(full=True)
        except pa.ArrowInvalid:
            raw = found.cast(pa.large_binary()).to_pylist()
            return pa.array([_decoded(value) for value in raw], type=kind)
    return found


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _holds_bytes(kind: pa.DataType) -> bool:
    kind = _plain_type(kind)
    if pa.types.is_struct(kind):
        inner = {kind.field(at).name: _plain_type(kind.field(at).type) for at in range(kind.num_fields)}
        # Where every image is a path, the bytes have no type.
        return "bytes" in inner and (_is_bytes(inner["bytes"]) or ("path" in inner and inner["bytes"] == pa.null()))
    return _is_bytes(kind)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without what is only a matter of storage: extensions and dictionaries."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    return _plain_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _storage(values: pa.Array) -> pa.Array:
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def _one_of(*tests: Callable[[Any], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: any(test(kind) for test in tests)


_is_text = _one_of(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_is_bytes = _one_of(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


def _listed(schema: pa.Schema) -> str:
    shown = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:30])
    return f"Its columns: {shown}{' …' if len(schema) > 30 else ''}."
