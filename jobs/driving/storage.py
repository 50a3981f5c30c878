"""The storage settings of a run from its `run.json`, for verbs that read its images again."""

from collections.abc import Mapping

from captioning.config import build
from captioning.errors import SettingsError
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.storage import StorageSettings


def storage_of_run(layout: RunLayout) -> StorageSettings:
    """The storage settings of the run in `layout`; the defaults if there is none."""
    return recorded_storage(RunRecord.read(layout))


def recorded_storage(record: RunRecord | None) -> StorageSettings:
    """The storage settings in a record."""
    values = record.settings.get("storage") if record is not None else None
    try:
        return build(StorageSettings, values) if isinstance(values, Mapping) else StorageSettings()
    except SettingsError:
        return StorageSettings()
