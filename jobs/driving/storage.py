"""How a run reached its images, for verbs that read them again. Knows `run.json` and nothing else."""

from collections.abc import Mapping

from captioning.config import build
from captioning.errors import SettingsError
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.storage import StorageSettings


def storage_of_run(layout: RunLayout) -> StorageSettings:
    """The storage settings of the run in `layout`; the default ones where there is none."""
    return recorded_storage(RunRecord.read(layout))


def recorded_storage(record: RunRecord | None) -> StorageSettings:
    """The storage settings that a record has."""
    values = record.settings.get("storage") if record is not None else None
    try:
        return build(StorageSettings, values) if isinstance(values, Mapping) else StorageSettings()
    except SettingsError:
        return StorageSettings()
