"""The sources of a run, which turn each INPUT into entries: one module per kind of archive.

    sources = open_sources(["s3://bucket/photos", "extra=more.tar"])
    for entry in sources[0].entries(): …

Sources list images and do not read them.
"""

from captioning.run.sources.base import Source
from captioning.run.sources.combined import kept_schema, no_images_error
from captioning.run.sources.entry import Entry
from captioning.run.sources.opening import open_sources
from captioning.run.sources.settings import InputSettings

__all__ = ["Entry", "InputSettings", "Source", "kept_schema", "no_images_error", "open_sources"]
