"""Lists an archive as a stream of small tables, and checks that its image ids are unique.

    listing = Listing(sources)
    for table in listing.tables(): …         rows of the index, in order
    listing.check_ids()                      raises for a repeated id, and names the two INPUTs

Repeated ids are detected at the end of the listing, before its segment is committed.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import islice

import pyarrow as pa

from captioning.errors import InputError
from captioning.run.duplicates import DuplicateFinder, is_in
from captioning.run.hashing import UInt64Array
from captioning.run.segment import entries_to_table
from captioning.run.sources import Source, no_images_error

_BATCH = 8192


class Listing:
    """One pass over `sources`, in order. The INPUTs in `may_be_empty` need not have an image."""

    def __init__(self, sources: Sequence[Source], *, may_be_empty: Collection[str] = ()) -> None:
        self._sources = sources
        self._may_be_empty = may_be_empty
        self._repeats = DuplicateFinder()

    def tables(self) -> Iterator[pa.Table]:
        """The images as tables of `index_schema`, some thousands in each.

        Raises `StorageError`, and `InputError` for a source without images unless that is allowed.
        """
        for source in self._sources:
            found = False
            for table in _tables(source):
                found = True
                self._repeats.add(table["image_id"])
                yield table
            if not found and source.given not in self._may_be_empty:
                raise no_images_error(source)

    def check_ids(self) -> None:
        """Raise `InputError` if two images have the same id; lists again only if there are candidates.

        A second call finds nothing.
        """
        candidates = self._repeats.candidates()
        if len(candidates):
            _raise_for_duplicates(self._sources, candidates)


def _tables(source: Source) -> Iterator[pa.Table]:
    entries = source.entries()
    while batch := list(islice(entries, _BATCH)):
        yield entries_to_table(batch, source.kept)


def _raise_for_duplicates(sources: Sequence[Source], candidates: UInt64Array) -> None:
    """Raise `InputError` for the first repeated id."""
    sources_by_id: dict[str, Source] = {}
    for source in sources:
        for table in _tables(source):
            ids = table["image_id"].filter(pa.array(is_in(table["image_id"], candidates)))
            for image_id in ids.to_pylist():
                if image_id in sources_by_id:
                    raise _duplicate_error(sources_by_id[image_id], source, image_id)
                sources_by_id[image_id] = source


def _duplicate_error(first: Source, second: Source, image_id: str) -> InputError:
    if first is second:
        return InputError(f"INPUT {second.given} has two images with the id {image_id!r}. Give them different ids.")
    return InputError(
        f"The image id {image_id!r} is in both INPUTs {first.given} and {second.given}. Give each INPUT a name, which "
        f"is put before its ids: a={second.location}. (For tars or images of one folder, quote the glob, so that they "
        "are one INPUT.)"
    )
