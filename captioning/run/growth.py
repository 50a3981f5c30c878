"""What has changed in an archive since its index was made: new images become a new segment.

Images that changed or are gone are counted and named; their rows stay as they are. Called only
when every shard of the index is done. Knows nothing of captions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from captioning.run.digests import DIGEST, Digests, digests, find
from captioning.run.index import Index, PendingSegment, checked_entries, write_entries
from captioning.run.sources import Entry, Source

_BATCH = 4096
_EXAMPLES = 5


@dataclass(frozen=True)
class Growth:
    """The archive compared with the index. `pending` holds the new images, None when there are none."""

    pending: PendingSegment | None
    new: int
    changed: int
    vanished: int
    changed_examples: tuple[str, ...]
    vanished_examples: tuple[str, ...]

    def lines(self) -> list[str]:
        """What a person should know, a line each; nothing when the archive is as it was."""
        said = [f"{self.new:,} new images in the archive."] if self.new else []
        for count, what, examples in (
            (self.changed, "changed since they were captioned; their captions stay", self.changed_examples),
            (self.vanished, "no longer in the archive; their rows stay", self.vanished_examples),
        ):
            if count:
                said.append(f"{count:,} images {what}: {', '.join(examples)}{' …' if count > len(examples) else ''}")
        return said


@dataclass
class _Known:
    """The images of the index, sorted by the digest of their id."""

    ids: Digests
    versions: Digests
    seen: np.ndarray[tuple[int], np.dtype[np.bool_]]
    changed: int = 0
    changed_examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, index: Index) -> "_Known":
        ids, versions = [np.empty(0, DIGEST)], [np.empty(0, DIGEST)]
        for batch in index.batches():
            ids.append(digests([entry.image_id for entry in batch]))
            versions.append(digests([_version(entry) for entry in batch]))
        all_ids = np.concatenate(ids)
        order = np.argsort(all_ids["high"], kind="stable")
        return cls(all_ids[order], np.concatenate(versions)[order], np.zeros(len(order), np.bool_))

    def new(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Those of `entries` that the index does not have; the others are compared with it."""
        stream = iter(entries)
        while batch := list(islice(stream, _BATCH)):
            at = find(self.ids, digests([entry.image_id for entry in batch]))
            same = self.versions[at] == digests([_version(entry) for entry in batch])
            self.seen[at[at >= 0]] = True
            for entry, place, unchanged in zip(batch, at, same, strict=True):
                if place < 0:
                    yield entry
                elif not unchanged:
                    self.changed += 1
                    if len(self.changed_examples) < _EXAMPLES:
                        self.changed_examples.append(entry.image_id)


def grow(index: Index, sources: Sequence[Source], *, shard_size: int) -> Growth:
    """List the archive again and write what is new as a further segment, not committed yet.

    Raises `InputError` and `StorageError` as the first listing does, and leaves nothing behind.
    """
    assert index.segments, "a run without an index begins with write_segment"
    known = _Known.of(index)
    pending = write_entries(index, known.new(checked_entries(sources, may_be_empty=True)), sources, shard_size)
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
    for batch in index.batches():
        at = find(known.ids, digests([entry.image_id for entry in batch]))
        names += [entry.image_id for entry, place in zip(batch, at, strict=True) if not known.seen[place]]
        if len(names) >= _EXAMPLES:
            break
    return names[:_EXAMPLES]


def _version(entry: Entry) -> str:
    return f"{entry.size_bytes} {entry.version} {entry.offset}"
