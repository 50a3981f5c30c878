"""Small archives and a driver without Ray, for the tests of a run's bookkeeping."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from captioning.run.growth import grow
from captioning.run.index import Index, write_segment
from captioning.run.layout import RunLayout, Shard
from captioning.run.record import RunRecord
from captioning.run.sources import open_sources
from captioning.run.staging import fold, pending_shards, write_staged
from captioning.run.table import Row, read_table
from captioning.storage import Location, StorageSettings


def make_archive(folder: Path, names: Iterable[str]) -> Path:
    """Files whose content is their own name: the bookkeeping never looks inside."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def photos(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{number:03d}.jpg" for number in range(count)]


def make_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def layout_of(folder: Path) -> RunLayout:
    return RunLayout(Location.parse(str(folder)))


def shard_rows(index: Index, shard: Shard, model: str = "toy") -> list[Row]:
    """A row an image, an error for every fifth, all made from the entry alone."""
    rows = []
    for number, entry in enumerate(index.rows(shard), start=shard.start):
        if number % 5 == 4:
            rows.append(Row.failed(entry, "truncated", "cut short", model=model))
            continue
        caption = f"a photo of {entry.image_id}"
        rows.append(
            Row(
                image_id=entry.image_id,
                uri=entry.uri,
                caption=caption,
                score=-0.5,
                num_tokens=4,
                alternatives=((caption, -0.5), ("a photo", -0.75)),
                width=4,
                height=3,
                size_bytes=entry.size_bytes,
                model=model,
            )
        )
    return rows


def drive(
    layout: RunLayout, inputs: list[str], *, shard_size: int = 2, storage: StorageSettings | None = None
) -> Index:
    """What a driver does from first to last: index, caption, fold; grow when all is done; caption again."""
    sources = open_sources(inputs, storage)
    record = RunRecord.read(layout)
    index = Index.load(layout)
    if record is None or not index.segments:
        pending = write_segment(layout, sources, shard_size=shard_size)
        new = RunRecord(
            inputs=tuple(source.given for source in sources),
            archive=tuple(source.location.uri for source in sources),
            shard_size=pending.shard_size,
            settings={},
            fingerprint_parts={"model": "toy"},
        )
        new.create(layout)
        index = pending.commit()
    caption(layout, index)
    growth = grow(index, sources, shard_size=shard_size)
    if growth.pending is not None:
        index = growth.pending.commit()
        caption(layout, index)
    return index


def caption(layout: RunLayout, index: Index) -> None:
    for number, shard in enumerate(pending_shards(layout, index)):
        write_staged(layout, shard, shard_rows(index, shard))
        if number % 3 == 2:
            fold(layout, index)
    fold(layout, index)


def table(layout: RunLayout) -> list[dict[str, Any]]:
    rows = [row for batch in read_table(layout) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: str(row["image_id"]))


class Killed(BaseException):
    """The process was killed: nothing, no clean-up either, happens after it."""


class Killer:
    """Kills before the nth change to the storage (from 0)."""

    def __init__(self, patch: pytest.MonkeyPatch, *, at: int) -> None:
        self.changes = 0
        self._at = at
        for name in ("write_bytes", "create_bytes", "append_bytes", "delete"):
            patch.setattr(Location, name, self._wrap(getattr(Location, name)))

    @property
    def struck(self) -> bool:
        return self.changes > self._at

    def _wrap(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(location: Location, *args: Any, **kwargs: Any) -> Any:
            number, self.changes = self.changes, self.changes + 1
            if number < self._at:
                return change(location, *args, **kwargs)
            raise Killed

        return wrapped


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of 4 shards instead of 256."""
    for module in ("layout", "segment", "index"):
        monkeypatch.setattr(f"captioning.run.{module}.SHARDS_PER_PART", 4)
    return 4
