"""Settings of the `verify` verb."""

from dataclasses import field

from captioning.config import settings
from captioning.storage import StorageSettings


@settings
class VerifySettings:
    """How the run's files are reached."""

    storage: StorageSettings = field(default_factory=StorageSettings)
