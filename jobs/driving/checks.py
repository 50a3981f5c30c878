"""Checks of a request before anything is written or loaded: its INPUTs, its OUTPUT, and the run's fingerprint.

Shared by `caption`, `retry` and `plan`, so that all of them accept the same.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from captioning.errors import InputError, StorageError, UsageError
from captioning.run.record import RunRecord
from captioning.run.sources import Source, open_sources
from captioning.run.table import schema_description
from captioning.storage import Location
from jobs.caption_settings import CaptionSettings

if TYPE_CHECKING:
    from captioning.captioner_info import CaptionerInfo


def open_inputs(
    inputs: Sequence[str], settings: CaptionSettings, output: Location | None, before: RunRecord | None
) -> list[Source]:
    """Open the INPUTs as sources, without the files of the run in `output`, and with the kinds recorded in `before`.

    Raises `InputError`.
    """
    kinds = dict(zip(before.inputs, before.kinds, strict=False)) if before is not None else {}
    try:
        return open_sources(inputs, settings.storage, settings.input, output=output, kinds=kinds)
    except StorageError as error:
        raise InputError(f"INPUT cannot be read: {error.message}") from error


def require_output(root: Location) -> None:
    """Raise `UsageError` if OUTPUT is a file, or cannot be written to."""
    try:
        found = root.info()
        # An object store may mark a folder with an empty object.
        if found is not None and (found.size or not root.is_dir()):
            raise UsageError(f"OUTPUT {root} is a file. Choose a folder; it is created if it does not exist.")
        root.check_writable()
    except StorageError as error:
        raise UsageError(f"OUTPUT {root} cannot be written to: {error.message} Choose another with -o.") from error


def fingerprint_parts(info: "CaptionerInfo", kept: pa.Schema) -> dict[str, Any]:
    """The values that a run's fingerprint hashes: everything that decides the table's rows.

    `kept` are the archive's columns that the table keeps.
    """
    return {"captioner": dict(info.identity), "columns": schema_description(kept)}
