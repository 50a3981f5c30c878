"""Columns of an archive's tables: finds the image column, and converts values to ids, URIs and kept values."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.errors import InputError
from captioning.storage import Location

#: Text columns with these names, in any case, are taken for paths or URIs of images.
_URI_NAMES = frozenset(
    {"uri", "url", "path", "image", "image_uri", "image_url", "image_path", "file", "file_name", "filename", "filepath"}
)


def image_column(schema: pa.Schema, wanted: str | None, location: Location) -> str:
    """The column of images: `wanted`, else the only candidate. Raises `InputError`.

    Candidates are columns of bytes or of Hugging Face `datasets` images (structs of `bytes` and `path`); if there
    are none, text columns with a name such as `uri` or `path`.
    """
    if wanted is not None:
        require_column(schema, wanted, "input.image_column", location)
        kind = schema.field(wanted).type
        if _holds_bytes(kind) or holds_uris(kind):
            return wanted
        raise InputError(
            f"input.image_column is {wanted!r}, but in {location} that column holds {_value_type(kind)}: images are "
            f"bytes, or text that is a path or URI. {_column_list(schema)}"
        )
    for candidates in (
        [field.name for field in schema if _holds_bytes(field.type)],
        [field.name for field in schema if holds_uris(field.type) and field.name.lower() in _URI_NAMES],
    ):
        if len(candidates) == 1:
            return str(candidates[0])
        if candidates:
            raise InputError(
                f"{location} has several columns that may hold the images: {', '.join(candidates)}. Choose one: "
                f"--set input.image_column={candidates[0]}"
            )
    raise InputError(
        f"No column of {location} is known to hold images: none has bytes, and none has text and a name such as uri "
        f"or path. Choose one with --set input.image_column=NAME. {_column_list(schema)}"
    )


def require_column(schema: pa.Schema, name: str, setting: str, location: Location) -> None:
    """Raise `InputError` unless there is exactly one column of this name."""
    count = schema.names.count(name)
    if count != 1:
        found = "no such column" if not count else f"{count} columns of that name"
        raise InputError(f"{setting} is {name!r}, but {location} has {found}. {_column_list(schema)}")


def holds_uris(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return _is_text(_value_type(kind))


def texts(values: pa.Array, name: str, location: Location) -> list[str | None]:
    """Text, bytes or integers as text; bytes that are not UTF-8 become surrogate escapes."""
    kind = _value_type(values.type)
    if pa.types.is_integer(kind):
        return [None if value is None else str(value) for value in values.cast(kind).to_pylist()]
    if not _is_text(kind) and not _is_bytes(kind):
        raise InputError(
            f"Column {name!r} of {location} holds {kind}, which cannot be an image id: ids are text or whole numbers. "
            "Choose another input.id_column."
        )
    raw: Sequence[bytes | None] = _storage(values).cast(kind).cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def kept_type(field: pa.Field) -> pa.DataType:
    """The type of a column after it has been written to Parquet and read back."""
    buffer = io.BytesIO()
    plain = pa.schema([pa.field("kept", _value_type(field.type))])
    try:
        pq.write_table(plain.empty_table(), buffer)
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"input.keep_columns names {field.name!r}: Parquet cannot store {field.type}.") from error
    return pq.read_schema(buffer).field(0).type


def as_kept(values: pa.Array, kind: pa.DataType, name: str, location: Location) -> pa.Array:
    """The values of a column cast to the type of the kept column. Raises `InputError` if they cannot be."""
    try:
        found = _storage(values).cast(_value_type(values.type)).cast(kind)
    except pa.ArrowException as error:
        raise InputError(
            f"Column {name!r} of {location} holds {values.type} where earlier files hold {kind}, and its values cannot "
            f"be converted: {error}. Remove it from input.keep_columns."
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
    kind = _value_type(kind)
    if pa.types.is_struct(kind):
        inner = {kind.field(at).name: _value_type(kind.field(at).type) for at in range(kind.num_fields)}
        # If every image is a path, the type of `bytes` is null.
        return "bytes" in inner and (_is_bytes(inner["bytes"]) or ("path" in inner and inner["bytes"] == pa.null()))
    return _is_bytes(kind)


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without extension and dictionary encoding."""
    if isinstance(kind, pa.BaseExtensionType):
        return _value_type(kind.storage_type)
    return _value_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _storage(values: pa.Array) -> pa.Array:
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def _one_of(*tests: Callable[[Any], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: any(test(kind) for test in tests)


_is_text = _one_of(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_is_bytes = _one_of(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


def _column_list(schema: pa.Schema) -> str:
    shown = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:30])
    return f"Its columns: {shown}{' …' if len(schema) > 30 else ''}."
