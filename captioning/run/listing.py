"""The archive as a stream of small tables, listed once, in which no image id may come twice.

    listing = Listing(sources)
    for table in listing.tables(): …         rows of the index, in order
    listing.check_ids()                      raises when an id came twice, and names the two INPUTs

That an id came twice is found at the end, before anything of the listing counts. Knows nothing of segments.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import islice

import pyarrow as pa

from captioning.errors import InputError
from captioning.run.hashing import Words
from captioning.run.repeats import Repeats, are_among
from captioning.run.segment import entries_to_table
from captioning.run.sources import Source, require_image

_BATCH = 8192


class Listing:
    """One pass over `sources`, in their order. Those of the INPUTs `may_be_empty` need not have an image."""

    def __init__(self, sources: Sequence[Source], *, may_be_empty: Collection[str] = ()) -> None:
        self._sources = sources
        self._may_be_empty = may_be_empty
        self._repeats = Repeats()

    def tables(self) -> Iterator[pa.Table]:
        """The images, some thousands a table of `index_schema`. Raises `StorageError`, and `InputError` for a source
        without images unless that is allowed."""
        for source in self._sources:
            found = False
            for table in _tables(source):
                found = True
                self._repeats.add(table["image_id"])
                yield table
            if not found and source.given not in self._may_be_empty:
                raise require_image(source)

    def check_ids(self) -> None:
        """Raise `InputError` if two of the images listed have one id; lists again only where it looks like that.

        Once is enough: another call finds nothing.
        """
        suspects = self._repeats.suspects()
        if len(suspects):
            _find_shared(self._sources, suspects)


def _tables(source: Source) -> Iterator[pa.Table]:
    entries = source.entries()
    while batch := list(islice(entries, _BATCH)):
        yield entries_to_table(batch, source.kept)


def _find_shared(sources: Sequence[Source], suspects: Words) -> None:
    """Raise `InputError` for the first id that comes twice."""
    holders: dict[str, Source] = {}
    for source in sources:
        for table in _tables(source):
            ids = table["image_id"].filter(pa.array(are_among(table["image_id"], suspects)))
            for image_id in ids.to_pylist():
                if image_id in holders:
                    raise _shared(holders[image_id], source, image_id)
                holders[image_id] = source


def _shared(first: Source, second: Source, image_id: str) -> InputError:
    if first is second:
        return InputError(f"INPUT {second.given} has two images with the id {image_id!r}. Give the two different ids.")
    return InputError(
        f"The image id {image_id!r} is in both INPUTs {first.given} and {second.given}. Give each INPUT a name, which "
        f"is put before its ids: a={second.location}. (Tars or images of one folder: quote the glob, so that they are "
        "one INPUT.)"
    )
