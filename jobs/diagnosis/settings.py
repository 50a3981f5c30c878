"""Settings of the `doctor` verb."""

from dataclasses import field

from captioning.config import settings
from captioning.storage import StorageSettings


@settings
class DoctorSettings:
    """How `doctor` reaches storage."""

    storage: StorageSettings = field(default_factory=StorageSettings)
    """How `--input`, `--output` and a captioner's URI are reached."""
