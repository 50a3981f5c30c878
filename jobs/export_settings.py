"""Settings of the `export` verb."""

from captioning.config import settings
from captioning.storage import StorageSettings


@settings
class ExportSettings:
    """How files are reached."""

    storage: StorageSettings | None = None
    """How the run, its images and the export are reached; the images by default as the run reached them."""
