"""Settings of `prepare`. Knows no dataset."""

from dataclasses import field
from typing import Annotated

from annotated_types import Ge, Le

from captioning.config import settings
from captioning.storage import StorageSettings


@settings
class PrepareSettings:
    """How shards are cut. Images other than JPEGs are encoded as JPEGs of `jpeg_quality`."""

    shard_samples: Annotated[int, Ge(1)] = 512
    """At most so many images in a shard."""
    val_fraction: Annotated[float, Ge(0), Le(1)] = 0.05
    """The share of images that a hash of the name puts in `val`, where nothing else gives a split."""
    jpeg_quality: Annotated[int, Ge(1), Le(100)] = 95
    """Quality at which images other than JPEGs are encoded; JPEGs are taken as they are."""

    storage: StorageSettings = field(default_factory=StorageSettings)
