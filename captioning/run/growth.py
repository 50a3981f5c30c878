"""Compares an archive with its index: new images become a new segment.

Images that changed or vanished are counted, with examples; their rows stay as they are, unless the caller
collects the changed ones to caption them again. Called only when every shard of the index is done.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.run.digests import DIGEST, Digests, find
from captioning.run.hashing import UInt64Array, text_digests
from captioning.run.index import Index, PendingSegment, write_tables
from captioning.run.listing import Listing
from captioning.run.redo_selection import changed_images
from captioning.run.segment import read_columns
from captioning.run.selection import EVERYTHING, Selection
from captioning.run.sources import Source

ChangedCallback = Callable[[NDArray[np.int64], pa.Table], None]

_EXAMPLES = 5
#: Columns of the index that change with an image. For images in tars, and those whose size is unknown, the URI is
#: compared as well.
_VERSION = ("size_bytes", "version", "offset")


@dataclass(frozen=True)
class Growth:
    """The archive compared with the index. `pending` holds the new images, None when there are none."""

    pending: PendingSegment | None
    new: int
    changed: int
    vanished: int
    changed_examples: tuple[str, ...]
    vanished_examples: tuple[str, ...]

    def lines(self, *, refreshing: bool = False) -> list[str]:
        """Lines to show to the user; none if the archive is unchanged.

        `refreshing` says that the changed images are captioned again.
        """
        changed = (
            "they are captioned again"
            if refreshing
            else "their captions are kept (--refresh changed generates new ones)"
        )
        lines = [f"{self.new:,} new images in the archive."] if self.new else []
        for count, what, examples in (
            (self.changed, f"changed since they were captioned; {changed}", self.changed_examples),
            (self.vanished, "no longer in the archive; their rows are kept", self.vanished_examples),
        ):
            if count:
                lines.append(f"{count:,} images {what}: {', '.join(examples)}{' …' if count > len(examples) else ''}")
        return lines


@dataclass
class _IndexedImages:
    """The images of the index, sorted by the digest of their id: some forty bytes each.

    `rows` are their row numbers in the index, if requested. Where ids depend on the order of listing (see
    `sources.base.PreviousListing`), `uris` are the digests of their URIs and `tars` the numbers of their tars in
    `tar_names` (-1 for none). `seen` marks those that are still in the archive.
    """

    ids: Digests
    versions: UInt64Array
    rows: NDArray[np.int64] | None
    seen: np.ndarray[tuple[int], np.dtype[np.bool_]]
    uris: UInt64Array | None = None
    tars: NDArray[np.int32] | None = None
    tar_names: list[str] = field(default_factory=list)
    up_to_date: list[tuple[NDArray[np.int64], pa.Table]] = field(default_factory=list)
    changed: int = 0
    changed_examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, index: Index, *, keep_rows: bool, keep_uris: bool) -> "_IndexedImages":
        ids, versions = np.empty(index.rows_total, DIGEST), np.empty(index.rows_total, np.uint64)
        size = index.rows_total if keep_uris else 0
        uris, tars = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
        numbers: dict[str, int] = {}
        start = 0
        for table in _tables(index):
            chunk = slice(start, start + table.num_rows)
            ids[chunk] = text_digests(table["image_id"])
            versions[chunk] = _versions(table)
            if keep_uris and "uri" in table.column_names:
                uris[chunk] = text_digests(table["uri"])["high"]
                coded = table["tar"].combine_chunks().dictionary_encode()
                known = [numbers.setdefault(name, len(numbers)) for name in coded.dictionary.to_pylist()]
                tars[chunk] = np.array([*known, -1])[coded.indices.fill_null(len(known)).to_numpy()]
            start += table.num_rows
        assert start == len(ids), "the files have the rows that the markers say"
        order = np.argsort(ids["high"], kind="stable")
        images = cls(ids[order], versions[order], order if keep_rows else None, np.zeros(len(order), np.bool_))
        if keep_uris:
            images.uris, images.tars, images.tar_names = uris[order], tars[order], [*numbers]
        return images

    def lookup(self, image_ids: Sequence[str], uris: Sequence[str]) -> tuple[Sequence[bool], Sequence[str | None]]:
        """See `sources.base.PreviousListing`."""
        assert self.uris is not None, "created with keep_uris"
        assert self.tars is not None, "created with keep_uris"
        at = find(self.ids, text_digests(pa.array(image_ids, pa.string())))
        known = at >= 0
        own = known.copy()
        own[known] = self.uris[at[known]] == text_digests(pa.array(uris, pa.string()))["high"][known]
        tars = np.full(len(at), -1)
        tars[known] = self.tars[at[known]]
        return own.tolist(), [self.tar_names[number] if number >= 0 else None for number in tars.tolist()]

    def new(
        self,
        tables: Iterable[pa.Table],
        on_changed: ChangedCallback | None,
        was_just_captioned: Callable[[int], bool] | None,
    ) -> Iterator[pa.Table]:
        """The rows that are not in the index; the others are compared with it.

        Images that are files of their own, in rows for which `was_just_captioned` is true, do not count as changed
        but are collected in `up_to_date`.
        """
        for table in tables:
            at = find(self.ids, text_digests(table["image_id"]))
            known = at >= 0
            self.seen[at[known]] = True
            changed = known & (self.versions[at] != _versions(table)) if len(self.versions) else known
            if was_just_captioned is not None and self.rows is not None and changed.any():
                is_file = pc.and_(pc.is_null(table["tar"]), pc.is_null(table["table"])).to_numpy()
                captioned = changed & is_file
                captioned[captioned] = [was_just_captioned(row) for row in self.rows[at[captioned]].tolist()]
                self.up_to_date.append((self.rows[at[captioned]], table.filter(pa.array(captioned))))
                changed &= ~captioned
            self.changed += int(changed.sum())
            wanted = _EXAMPLES - len(self.changed_examples)
            self.changed_examples += table["image_id"].take(np.flatnonzero(changed)[:wanted]).to_pylist()
            if on_changed is not None and self.rows is not None and changed.any():
                on_changed(self.rows[at[changed]], table.filter(pa.array(changed)))
            yield table.filter(pa.array(~known))


def grow(
    index: Index,
    sources: Sequence[Source],
    *,
    shard_size: int,
    selection: Selection = EVERYTHING,
    on_changed: ChangedCallback | None = None,
    added: Collection[str] = (),
    just_captioned: Collection[int] = (),
) -> Growth:
    """List the archive again and write new images as a further segment, not committed yet.

    New images are subject to the run's `selection`; a selection of a fixed number takes none. `on_changed` is
    called with batches of changed images: their row numbers in the index, and a table of `INDEX_SCHEMA` with their
    current entries. INPUTs in `added` must have an image. Files of the shards `just_captioned` were captioned in
    their current state: if they differ from the index, it is updated and they do not count as changed.
    Raises `InputError` and `StorageError` as the first listing does, and leaves no file behind.
    """
    assert index.segments, "a run without an index begins with write_segment"
    keep_uris = any(source.ids_depend_on_order for source in sources)
    known = _IndexedImages.of(index, keep_rows=on_changed is not None or bool(just_captioned), keep_uris=keep_uris)
    for source in sources:
        source.previous = known if keep_uris else None
    was_just_captioned = (lambda row: index.shard_of_row(row).number in just_captioned) if just_captioned else None
    listing = Listing(sources, may_be_empty=[source.given for source in sources if source.given not in added])
    if selection.takes_new_images:
        new = known.new(selection.apply(listing.tables()), on_changed, was_just_captioned)
    else:
        new = (table.slice(0, 0) for table in known.new(listing.tables(), on_changed, was_just_captioned))
    pending = write_tables(index, new, sources, shard_size, check=listing.check_ids)
    for part, newer in changed_images(index, known.up_to_date):
        index.update_part(part, newer.drop_columns(["shard"]))
    vanished = int((~known.seen).sum())
    return Growth(
        pending=pending if pending.rows else None,
        new=pending.rows,
        changed=known.changed,
        vanished=vanished,
        changed_examples=tuple(known.changed_examples),
        vanished_examples=tuple(_vanished(index, known)) if vanished else (),
    )


def _vanished(index: Index, known: _IndexedImages) -> list[str]:
    names: list[str] = []
    for table in index.tables(["image_id"]):
        gone = ~known.seen[find(known.ids, text_digests(table["image_id"]))]
        names += table["image_id"].take(np.flatnonzero(gone)[:_EXAMPLES]).to_pylist()
        if len(names) >= _EXAMPLES:
            break
    return names[:_EXAMPLES]


def _tables(index: Index) -> Iterator[pa.Table]:
    """The columns of the index that are compared, with URIs, which are long, only where needed."""
    for segment in index.segments:
        for name in segment.files:
            table = read_columns(index.layout, name, ["image_id", *_VERSION, "tar"])
            if pc.any(_compares_uri(table)).as_py():
                table = table.append_column("uri", read_columns(index.layout, name, ["uri"])["uri"])
            yield table


def _compares_uri(table: pa.Table) -> pa.ChunkedArray:
    return pc.or_(pc.is_null(table["size_bytes"]), pc.is_valid(table["tar"]))


def _versions(table: pa.Table) -> UInt64Array:
    """A digest for each row that changes with the image."""
    texts = [pc.cast(table[name], pa.string()) for name in _VERSION]
    uses_uri = _compares_uri(table)
    texts.append(pc.if_else(uses_uri, table["uri"], "") if pc.any(uses_uri).as_py() else pa.scalar(""))
    joined = pc.binary_join_element_wise(*texts, " ", null_handling="replace", null_replacement="-")
    return np.ascontiguousarray(text_digests(joined)["high"])
