"""Kills at any point: the resumed run gives the table of an undisturbed one."""

import threading
from pathlib import Path
from typing import Any

import pytest

from captioning.run.index import Index, write_segment
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.run.sources import open_sources
from captioning.run.staging import fold, pending_shards, write_staged
from captioning.run.verify import verify
from captioning.storage import Location
from tests.captioning.run.runs import (
    Killed,
    Killer,
    drive,
    layout_of,
    make_archive,
    photos,
    shard_rows,
    table,
)

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def archive(tmp_path: Path) -> str:
    return str(make_archive(tmp_path / "archive", photos(9)))


def drive_and_grow(layout: RunLayout, archive: str) -> None:
    drive(layout, [archive])
    make_archive(Path(archive), photos(3, "new/"))
    drive(layout, [archive])


def test_a_kill_at_any_write_does_not_change_the_result(
    tmp_path: Path, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kill before a change is a kill after the one before it: so these are all there are.
    drive_and_grow(layout_of(tmp_path / "whole"), archive)
    expected = table(layout_of(tmp_path / "whole"))
    assert len(expected) == 12
    at, struck = 0, True
    while struck:
        for name in photos(3, "new/"):
            (Path(archive) / name).unlink(missing_ok=True)
        layout = layout_of(tmp_path / f"out-{at}")
        with monkeypatch.context() as patch:
            killer = Killer(patch, at=at)
            try:
                drive_and_grow(layout, archive)
            except Killed:
                seen = [row["image_id"] for row in table(layout)]
                assert len(seen) == len(set(seen)), f"killed at change {at}, a reader sees a row twice"
            struck = killer.struck
        drive_and_grow(layout, archive)
        assert table(layout) == expected, f"killed at change {at}"
        verdict = verify(layout)
        assert verdict.ok, verdict.problems
        assert (verdict.inputs, verdict.rows) == (12, 12)
        # The index may hold what a slower driver could still be writing, but the staging is swept.
        assert layout.staging_dir.names() == []
        at += 1
    assert at > 20


def test_a_run_killed_repeatedly_finishes(tmp_path: Path, archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drive(layout_of(tmp_path / "whole"), [archive])
    layout = layout_of(tmp_path / "out")
    at = 0
    while True:
        with monkeypatch.context() as patch:
            # Four changes are enough to begin a run; later ones go on from what is there.
            Killer(patch, at=4 + at % 3)
            try:
                drive(layout, [archive])
                break
            except Killed:
                at += 1
                assert at < 30
    assert at > 1
    assert table(layout) == table(layout_of(tmp_path / "whole"))
    assert verify(layout).ok


def test_finished_shards_are_kept(tmp_path: Path, archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(tmp_path / "out")
    with monkeypatch.context() as patch:
        Killer(patch, at=8)
        with pytest.raises(Killed):
            drive(layout, [archive])
    index = Index.load(layout)
    done = {shard.number for shard in index.shards()} - {shard.number for shard in pending_shards(layout, index)}
    assert done
    staged = [number for number in done if layout.staged(number).exists()]
    before = {number: layout.staged(number).info() for number in staged}
    assert before
    for shard in pending_shards(layout, index):
        assert shard.number not in done
        write_staged(layout, shard, shard_rows(index, shard))
    assert {number: layout.staged(number).info() for number in staged} == before


def started(layout: RunLayout, archive: str) -> Index:
    sources = open_sources([archive])
    pending = write_segment(layout, sources, shard_size=2)
    record = RunRecord(inputs=(), archive=(), shard_size=2, settings={}, fingerprint_parts={})
    record.create(layout)
    index = pending.commit()
    for shard in index.shards():
        write_staged(layout, shard, shard_rows(index, shard))
    return index


def test_another_driver_folds_after_this_one_has_read(
    tmp_path: Path, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(layout_of(tmp_path / "whole"), [archive])
    layout = layout_of(tmp_path / "out")
    index = started(layout, archive)
    create = Location.create_bytes
    others: list[Any] = []

    def create_late(where: Location, data: bytes, *, temp: Location | None = None) -> bool:
        if not others:
            others.append(None)
            others[0] = fold(layout, index)
        return create(where, data, temp=temp)

    monkeypatch.setattr(Location, "create_bytes", create_late)
    mine = fold(layout, index)
    assert mine.folded == ()
    assert others[0].folded == tuple(index.ranges())
    assert table(layout) == table(layout_of(tmp_path / "whole"))
    assert verify(layout).ok


def test_another_driver_folds_between_listing_and_reading(
    tmp_path: Path, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(tmp_path / "out")
    index = started(layout, archive)
    parts = RunLayout.parts

    def parts_then_fold(self: RunLayout) -> Any:
        found = parts(self)
        monkeypatch.setattr(RunLayout, "parts", parts)
        fold(layout, index)
        return found

    monkeypatch.setattr(RunLayout, "parts", parts_then_fold)
    result = fold(layout, index)
    assert result.folded == ()
    assert result.damaged == ()
    assert verify(layout).ok
    assert pending_shards(layout, index) == []


def test_concurrent_folds_give_one_table(tmp_path: Path, archive: str) -> None:
    drive(layout_of(tmp_path / "whole"), [archive])
    layout = layout_of(tmp_path / "out")
    index = started(layout, archive)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(fold(layout, index))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(part for result in results for part in result.folded) == index.ranges()
    assert table(layout) == table(layout_of(tmp_path / "whole"))
    assert verify(layout).ok


def test_concurrent_starts_share_one_index(tmp_path: Path, archive: str) -> None:
    layout = layout_of(tmp_path / "out")
    first = write_segment(layout, open_sources([archive]), shard_size=2)
    second = write_segment(layout, open_sources([archive]), shard_size=3)
    winner = second.commit()
    assert first.commit() == winner
    assert winner.segments[0].shard_size == 3
    assert [name for name in layout.index_dir.names() if name.endswith(".parquet")] == list(winner.segments[0].files)
    assert [entry.image_id for shard in winner.shards() for entry in winner.rows(shard)] == photos(9)


def test_leftovers_of_a_folded_shard_are_deleted_and_never_folded(tmp_path: Path, archive: str) -> None:
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [archive])
    before = table(layout)
    late = index.shard(1)
    write_staged(layout, late, shard_rows(index, late, model="a late worker"))
    assert pending_shards(layout, index) == []
    assert fold(layout, index).folded == ()
    assert layout.staging_dir.names() == []
    assert table(layout) == before


@pytest.mark.parametrize("damage", ["truncated", "rubbish", "empty", "other rows"])
def test_a_damaged_staged_file_makes_its_shard_pending(tmp_path: Path, archive: str, damage: str) -> None:
    layout = layout_of(tmp_path / "out")
    index = started(layout, archive)
    data = layout.staged(1).read_bytes()
    other = layout.staged(index.shards_total - 1).read_bytes()
    content = {"truncated": data[:-20], "rubbish": b"PAR1" + b"x" * 99, "empty": b"", "other rows": other}[damage]
    layout.staged(1).write_bytes(content)
    result = fold(layout, index)
    assert result.damaged == (1,)
    assert [shard.number for shard in pending_shards(layout, index)] == [1]
    write_staged(layout, index.shard(1), shard_rows(index, index.shard(1)))
    assert fold(layout, index).folded == (index.ranges()[0],)
    assert verify(layout).ok
