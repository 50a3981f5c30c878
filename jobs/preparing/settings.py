"""Settings of `prepare`."""

from dataclasses import field
from typing import Annotated

from annotated_types import Ge, Le

from captioning.config import settings
from captioning.storage import StorageSettings


@settings
class PrepareSettings:
    """The settings of `prepare`."""

    shard_samples: Annotated[int, Ge(1)] = 512
    """The maximum number of images in a shard."""
    val_fraction: Annotated[float, Ge(0), Le(1)] = 0.05
    """The share of images that a hash of the name assigns to `val`, if the dataset has no splits."""
    jpeg_quality: Annotated[int, Ge(1), Le(100)] = 95
    """JPEG quality for images in other formats; JPEGs are copied unchanged."""

    storage: StorageSettings = field(default_factory=StorageSettings)
