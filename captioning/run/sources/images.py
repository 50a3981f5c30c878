"""Image files: a single one, a folder, or a glob. The id is the path below the INPUT."""

from collections.abc import Iterator

from captioning.data.images import IMAGE_EXTENSIONS
from captioning.run.sources.base import Source
from captioning.run.sources.entry import Entry
from captioning.storage import escape_name


class ImageSource(Source):
    """Image files, recognised by their extension; for a single file the id is its name."""

    kind = "images"
    suffixes = tuple(sorted(IMAGE_EXTENSIONS))

    def _entries(self) -> Iterator[Entry]:
        for file, location in self._files():
            # A file that was given by name is taken whatever its extension.
            if self.glob is None or self._is_image(file.path):
                yield Entry(self.prefix + escape_name(file.path), location.uri, file.size, file.version)
