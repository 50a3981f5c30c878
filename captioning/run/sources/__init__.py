"""What a person names as INPUT, and the entries that become of it: one module a kind of archive.

    sources = open_sources(["s3://bucket/photos", "extra=more.tar"])
    for entry in sources[0].entries(): …

Lists, and reads no image; knows nothing of the index that is made of the entries.
"""

from captioning.run.sources.base import Source
from captioning.run.sources.entry import Entry
from captioning.run.sources.opening import open_sources
from captioning.run.sources.settings import InputSettings
from captioning.run.sources.together import first_holder, kept_schema, require_image

__all__ = ["Entry", "InputSettings", "Source", "first_holder", "kept_schema", "open_sources", "require_image"]
