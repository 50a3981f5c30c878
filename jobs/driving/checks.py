"""What is found out about a request before anything is written or loaded: INPUTs, OUTPUT, and what makes a run one.

Shared by `caption`, `retry` and `plan`, so that none of them refuses what another takes.
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
    """The INPUTs as sources: without what is of the run in `output`, and of the kinds that `before` has of them.

    Raises `InputError`.
    """
    kinds = dict(zip(before.inputs, before.kinds, strict=False)) if before is not None else {}
    try:
        return open_sources(inputs, settings.storage, settings.input, output=output, kinds=kinds)
    except StorageError as error:
        raise InputError(f"INPUT cannot be read: {error.message}") from error


def require_output(root: Location) -> None:
    """Raise `UsageError` where OUTPUT is a file, or cannot be written to."""
    try:
        found = root.info()
        # An object store may mark a folder by an empty object.
        if found is not None and (found.size or not root.is_dir()):
            raise UsageError(f"OUTPUT {root} is a file. Give a folder, which is made if it is not there.")
        root.check_writable()
    except StorageError as error:
        raise UsageError(f"OUTPUT {root} cannot be written to: {error.message} Give another one with -o.") from error


def fingerprint_parts(info: "CaptionerInfo", kept: pa.Schema) -> dict[str, Any]:
    """What a run's fingerprint hashes: everything that decides what is in the table's rows.

    `kept` are the columns that the table takes over from the archive.
    """
    return {"captioner": dict(info.identity), "columns": schema_description(kept)}
