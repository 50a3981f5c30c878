"""What has changed in an archive since its index was made: new images become a new segment.

Images that changed or are gone are counted and named; their rows stay as they are, unless somebody
collects the changed ones to caption them again. Called only when every shard of the index is done.
Knows nothing of captions.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.run.digests import DIGEST, Digests, find
from captioning.run.hashing import Words, text_digests
from captioning.run.index import Index, PendingSegment, write_tables
from captioning.run.listing import Listing
from captioning.run.redo_choice import changed as by_part
from captioning.run.segment import read_columns
from captioning.run.selection import EVERYTHING, Selection
from captioning.run.sources import Source

OnChanged = Callable[[NDArray[np.int64], pa.Table], None]

_EXAMPLES = 5
#: Columns of the index that say whether an image is still the one it was; of images in tars, and of those of which the
#: listing tells no size, the URI does, too.
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
        """What a person should know, a line each; nothing when the archive is as it was.

        `refreshing` when the changed images are captioned again.
        """
        changed = "are captioned again" if refreshing else "their captions stay (--refresh changed makes new ones)"
        said = [f"{self.new:,} new images in the archive."] if self.new else []
        for count, what, examples in (
            (self.changed, f"changed since they were captioned; {changed}", self.changed_examples),
            (self.vanished, "no longer in the archive; their rows stay", self.vanished_examples),
        ):
            if count:
                said.append(f"{count:,} images {what}: {', '.join(examples)}{' …' if count > len(examples) else ''}")
        return said


@dataclass
class _Known:
    """The images of the index, sorted by the digest of their id: some forty bytes each.

    `rows` are their places in the index, where somebody wants to know them; `uris` the digests of their URIs and `tars`
    the numbers of their tars in `tar_names` (-1 for none), where ids go by order (`sources.base.Before`).
    """

    ids: Digests
    versions: Words
    rows: NDArray[np.int64] | None
    seen: np.ndarray[tuple[int], np.dtype[np.bool_]]
    uris: Words | None = None
    tars: NDArray[np.int32] | None = None
    tar_names: list[str] = field(default_factory=list)
    settled: list[tuple[NDArray[np.int64], pa.Table]] = field(default_factory=list)
    changed: int = 0
    changed_examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, index: Index, *, keep_rows: bool, keep_places: bool) -> "_Known":
        ids, versions = np.empty(index.rows_total, DIGEST), np.empty(index.rows_total, np.uint64)
        places = index.rows_total if keep_places else 0
        uris, tars = np.zeros(places, np.uint64), np.full(places, -1, np.int32)
        numbers: dict[str, int] = {}
        at = 0
        for table in _tables(index):
            some = slice(at, at + table.num_rows)
            ids[some] = text_digests(table["image_id"])
            versions[some] = _versions(table)
            if keep_places and "uri" in table.column_names:
                uris[some] = text_digests(table["uri"])["high"]
                coded = table["tar"].combine_chunks().dictionary_encode()
                known = [numbers.setdefault(name, len(numbers)) for name in coded.dictionary.to_pylist()]
                tars[some] = np.array([*known, -1])[coded.indices.fill_null(len(known)).to_numpy()]
            at += table.num_rows
        assert at == len(ids), "the files hold what the markers say"
        order = np.argsort(ids["high"], kind="stable")
        made = cls(ids[order], versions[order], order if keep_rows else None, np.zeros(len(order), np.bool_))
        if keep_places:
            made.uris, made.tars, made.tar_names = uris[order], tars[order], [*numbers]
        return made

    def stand(self, image_ids: Sequence[str], uris: Sequence[str]) -> tuple[Sequence[bool], Sequence[str | None]]:
        """See `sources.base.Before`."""
        assert self.uris is not None, "it was made with places"
        assert self.tars is not None, "it was made with places"
        at = find(self.ids, text_digests(pa.array(image_ids, pa.string())))
        known = at >= 0
        own = known.copy()
        own[known] = self.uris[at[known]] == text_digests(pa.array(uris, pa.string()))["high"][known]
        tars = np.full(len(at), -1)
        tars[known] = self.tars[at[known]]
        return own.tolist(), [self.tar_names[number] if number >= 0 else None for number in tars.tolist()]

    def new(
        self, tables: Iterable[pa.Table], on_changed: OnChanged | None, is_fresh: Callable[[int], bool] | None
    ) -> Iterator[pa.Table]:
        """Those rows that the index does not have; the others are compared with it.

        Files of their own in rows that `is_fresh` holds for have not changed, and are `settled`.
        """
        for table in tables:
            at = find(self.ids, text_digests(table["image_id"]))
            known = at >= 0
            self.seen[at[known]] = True
            changed = known & (self.versions[at] != _versions(table)) if len(self.versions) else known
            if is_fresh is not None and self.rows is not None and changed.any():
                alone = pc.and_(pc.is_null(table["tar"]), pc.is_null(table["table"])).to_numpy()
                settled = changed & alone
                settled[settled] = [is_fresh(row) for row in self.rows[at[settled]].tolist()]
                self.settled.append((self.rows[at[settled]], table.filter(pa.array(settled))))
                changed &= ~settled
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
    on_changed: OnChanged | None = None,
    added: Collection[str] = (),
    fresh: Collection[int] = (),
) -> Growth:
    """List the archive again and write what is new as a further segment, not committed yet.

    Of new images those count that the run's `selection` takes: none where it is of a fixed number.
    `on_changed` is given the images that changed, some at a time: their rows in the index, and a
    table of `INDEX_SCHEMA` with what they are now. Of the INPUTs those that are `added` must have an image.
    Files that were captioned a moment ago, those of the shards `fresh`, were captioned as they are: the index is told,
    and they do not count.
    Raises `InputError` and `StorageError` as the first listing does, and leaves nothing behind.
    """
    assert index.segments, "a run without an index begins with write_segment"
    places = any(source.ids_by_order for source in sources)
    known = _Known.of(index, keep_rows=on_changed is not None or bool(fresh), keep_places=places)
    for source in sources:
        source.before = known if places else None
    is_fresh = (lambda row: index.shard_of_row(row).number in fresh) if fresh else None
    listing = Listing(sources, may_be_empty=[source.given for source in sources if source.given not in added])
    if selection.grows:
        new = known.new(selection.of(listing.tables()), on_changed, is_fresh)
    else:
        new = (table.slice(0, 0) for table in known.new(listing.tables(), on_changed, is_fresh))
    pending = write_tables(index, new, sources, shard_size, check=listing.check_ids)
    for part, newer in by_part(index, known.settled):
        index.amend(part, newer.drop_columns(["shard"]))
    vanished = int((~known.seen).sum())
    return Growth(
        pending=pending if pending.rows else None,
        new=pending.rows,
        changed=known.changed,
        vanished=vanished,
        changed_examples=tuple(known.changed_examples),
        vanished_examples=tuple(_vanished(index, known)) if vanished else (),
    )


def _vanished(index: Index, known: _Known) -> list[str]:
    names: list[str] = []
    for table in index.tables(["image_id"]):
        gone = ~known.seen[find(known.ids, text_digests(table["image_id"]))]
        names += table["image_id"].take(np.flatnonzero(gone)[:_EXAMPLES]).to_pylist()
        if len(names) >= _EXAMPLES:
            break
    return names[:_EXAMPLES]


def _tables(index: Index) -> Iterator[pa.Table]:
    """What of the index an archive is compared with. URIs, which are long, only where it depends on them."""
    for segment in index.segments:
        for name in segment.files:
            table = read_columns(index.layout, name, ["image_id", *_VERSION, "tar"])
            if pc.any(_go_by_uri(table)).as_py():
                table = table.append_column("uri", read_columns(index.layout, name, ["uri"])["uri"])
            yield table


def _go_by_uri(table: pa.Table) -> pa.ChunkedArray:
    return pc.or_(pc.is_null(table["size_bytes"]), pc.is_valid(table["tar"]))


def _versions(table: pa.Table) -> Words:
    """A number for each row that is another when the image is."""
    texts = [pc.cast(table[name], pa.string()) for name in _VERSION]
    by_uri = _go_by_uri(table)
    texts.append(pc.if_else(by_uri, table["uri"], "") if pc.any(by_uri).as_py() else pa.scalar(""))
    joined = pc.binary_join_element_wise(*texts, " ", null_handling="replace", null_replacement="-")
    return np.ascontiguousarray(text_digests(joined)["high"])
