"""Rows captioned again: exactly the selected ones change, and no kill loses or duplicates a row."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captioning.errors import StorageError
from captioning.run.growth import grow
from captioning.run.index import Index
from captioning.run.layout import RunLayout
from captioning.run.redo import RedoPlan, RedoShardIO, make_plan
from captioning.run.redo_selection import changed_images, failed_images
from captioning.run.sources import Entry, open_sources
from captioning.run.table import Row
from captioning.run.verify import verify
from captioning.storage import Location, StorageSettings
from tests.captioning.run.runs import Killed, Killer, drive, layout_of, make_archive, photos, table
from tests.s3 import s3_server

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    # 23 photos: 12 shards of 2 in 3 parts of 4 shards; every fifth photo is an error.
    return make_archive(tmp_path / "archive", photos(23))


def again(entries: Sequence[Entry], model: str = "again") -> list[Row]:
    """A caption for each but the last of all, which fails as it did, for a new reason."""
    return [
        Row.failed(entry, "truncated", "still cut", model=model)
        if entry.image_id.startswith("019")
        else Row(
            image_id=entry.image_id,
            uri=entry.uri,
            caption=f"again {entry.image_id}",
            score=-0.25,
            num_tokens=3,
            alternatives=((f"again {entry.image_id}", -0.25),),
            width=4,
            height=3,
            size_bytes=entry.size_bytes,
            model=model,
        )
        for entry in entries
    ]


def redo(layout: RunLayout, index: Index, plan: RedoPlan | None = None, storage: StorageSettings | None = None) -> None:
    """What a driver does: go on with a plan or make one, stage what is missing, rewrite part by part."""
    plan = plan or RedoPlan.load(layout)
    if plan is None:
        plan = make_plan(layout, "retry", failed_images(layout, index, (), storage or StorageSettings()))
    assert plan is not None
    shard_io = RedoShardIO(plan, index)
    for part in plan.parts():
        for shard in plan.rewrite_part(index, part):
            shard_io.stage(shard, again(shard_io.entries(shard)))
        assert plan.rewrite_part(index, part) == []
    plan.close()


def rows(layout: RunLayout) -> dict[str, dict[str, Any]]:
    found = table(layout)
    assert len({row["image_id"] for row in found}) == len(found), "an image has more than one row"
    return {row["image_id"]: row for row in found}


def test_only_failed_rows_change_and_have_the_newest_error(tmp_path: Path, archive: Path) -> None:
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    before = rows(layout)
    redo(layout, index)
    after = rows(layout)
    for number, name in enumerate(photos(23)):
        if number % 5 != 4:
            assert after[name] == before[name]
        elif number == 19:
            assert (after[name]["status"], after[name]["error_message"]) == ("error", "still cut")
        else:
            assert (after[name]["status"], after[name]["caption"]) == ("ok", f"again {name}")
    assert verify(layout).ok
    assert verify(layout).errors == {"truncated": 1}
    assert layout.retry_dir.names() == []
    assert RedoPlan.load(layout) is None


def test_only_the_given_error_classes(tmp_path: Path, archive: Path) -> None:
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    assert make_plan(layout, "retry", failed_images(layout, index, ("network",), StorageSettings())) is None
    assert layout.retry_dir.names() == []
    chosen = dict(failed_images(layout, index, ("network", "truncated"), StorageSettings()))
    names = [name for found in chosen.values() for name in found["image_id"].to_pylist()]
    assert names == ["004.jpg", "009.jpg", "014.jpg", "019.jpg"]


def test_a_changed_image_that_is_deleted_meanwhile_keeps_its_row(tmp_path: Path, archive: Path) -> None:
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    before = rows(layout)
    for name in ("001.jpg", "012.jpg"):
        (archive / name).write_bytes(b"another")
    found: list[Any] = []
    grow(index, open_sources([str(archive)]), shard_size=2, on_changed=lambda at, now: found.append((at, now)))
    plan = make_plan(layout, "refresh", changed_images(index, found))
    assert plan is not None
    assert plan.images == 2
    shard_io = RedoShardIO(plan, index)
    for part in plan.parts():
        for shard in plan.rewrite_part(index, part):
            entries = shard_io.entries(shard)
            gone = [Row.failed(entry, "missing", "gone", model="again") for entry in entries if "001" in entry.image_id]
            shard_io.stage(shard, gone or again(entries))
        assert plan.rewrite_part(index, part) == []
    after = rows(layout)
    assert after["001.jpg"] == before["001.jpg"]
    assert after["012.jpg"]["caption"] == "again 012.jpg"
    assert verify(layout).ok


def test_a_kill_at_any_write_does_not_change_the_result(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(layout_of(tmp_path / "whole"), [str(archive)])
    redo(layout_of(tmp_path / "whole"), Index.load(layout_of(tmp_path / "whole")))
    expected = rows(layout_of(tmp_path / "whole"))
    at, struck = 0, True
    while struck:
        layout = layout_of(tmp_path / f"out-{at}")
        index = drive(layout, [str(archive)])
        with monkeypatch.context() as patch:
            killer = Killer(patch, at=at)
            try:
                redo(layout, index)
            except Killed:
                assert rows(layout).keys() == expected.keys(), f"killed at change {at}, a reader misses a row"
            struck = killer.struck
        redone = {name for name, row in rows(layout).items() if row["model"] == "again"}
        if RedoPlan.load(layout) is not None or not redone:
            redo(layout, index)
        assert rows(layout) == expected, f"killed at change {at}"
        assert verify(layout).ok
        make_plan(layout, "retry", [])  # sweeps what a killed one left
        assert layout.retry_dir.names() == []
        at += 1
    assert at > 15


def test_a_plan_resumes_with_staged_rows(tmp_path: Path, archive: Path) -> None:
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    plan = make_plan(layout, "retry", failed_images(layout, index, (), StorageSettings()), classes=("truncated",))
    assert plan is not None
    assert plan.images == 4
    shard_io = RedoShardIO(plan, index)
    shard_io.stage(2, again(shard_io.entries(2)))
    found = RedoPlan.load(layout)
    assert found == plan
    # Shards 2, 4, 7 and 9 hold photos 4, 9, 14 and 19.
    assert [found.rewrite_part(index, part) for part in found.parts()] == [[], [4, 7], [9]]
    assert rows(layout)["004.jpg"]["caption"] == "again 004.jpg"
    redo(layout, index)
    assert verify(layout).errors == {"truncated": 1}


@pytest.mark.parametrize("damage", ["cut", "empty", "other rows", "an earlier plan's"])
def test_an_invalid_staged_file_is_replaced(tmp_path: Path, archive: Path, damage: str) -> None:
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    plan = make_plan(layout, "retry", failed_images(layout, index, (), StorageSettings()))
    assert plan is not None
    shard_io = RedoShardIO(plan, index)
    where, right = plan.shard_file(2), again(shard_io.entries(2))
    if damage == "other rows":
        shard_io.stage(2, again(index.rows(index.shard(2))))
    elif damage == "an earlier plan's":
        RedoShardIO(replace(plan, token="00000000"), index).stage(2, again(shard_io.entries(2), model="late"))
    else:
        shard_io.stage(2, right)
        where.write_bytes(where.read_bytes()[:-20] if damage == "cut" else b"")
    assert plan.rewrite_part(index, plan.parts()[0]) == [2]
    redo(layout, index)
    assert verify(layout).errors == {"truncated": 1}
    assert "late" not in {row["model"] for row in rows(layout).values()}
    assert layout.retry_dir.names() == []


def test_a_part_deleted_meanwhile_is_left_to_captioning(tmp_path: Path, archive: Path) -> None:
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    before = rows(layout)
    plan = make_plan(layout, "retry", failed_images(layout, index, (), StorageSettings()))
    layout.part(index.ranges()[0]).delete()
    redo(layout, index, plan)
    assert len(rows(layout)) == 23 - 8
    drive(layout, [str(archive)])
    after = rows(layout)
    assert after["004.jpg"] == before["004.jpg"]
    assert after["009.jpg"]["caption"] == "again 009.jpg"


def test_two_drivers_with_one_plan_give_one_table(tmp_path: Path, archive: Path) -> None:
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    plan = make_plan(layout, "retry", failed_images(layout, index, (), StorageSettings()))
    assert plan is not None
    first, second, *_ = plan.parts()
    shard_io = RedoShardIO(plan, index)
    for shard in (2, 4, 7, 9):
        shard_io.stage(shard, again(shard_io.entries(shard)))
    plan.rewrite_part(index, first)
    assert plan.rewrite_part(index, first) == []
    redo(layout, index)
    assert plan.rewrite_part(index, second) == []
    plan.close()
    assert verify(layout).ok
    assert verify(layout).errors == {"truncated": 1}


def refresh(layout: RunLayout, archive: Path) -> Index:
    index = Index.load(layout)
    changed: list[tuple[Any, Any]] = []
    growth = grow(
        index,
        open_sources([str(archive)]),
        shard_size=2,
        on_changed=lambda rows, table: changed.append((rows, table)),
    )
    assert growth.changed == sum(len(rows) for rows, _ in changed)
    if changed:
        redo(layout, index, make_plan(layout, "refresh", changed_images(index, changed)))
    return index


def test_changed_images_are_captioned_again_and_the_index_is_updated(tmp_path: Path, archive: Path) -> None:
    layout = layout_of(tmp_path / "out")
    drive(layout, [str(archive)])
    make_archive(archive, photos(3, "new/"))
    drive(layout, [str(archive)])  # a second segment
    before = rows(layout)
    for name in ("003.jpg", "021.jpg", "new/001.jpg"):
        (archive / name).write_bytes(b"something else")
    (archive / "007.jpg").unlink()
    index = refresh(layout, archive)
    after = rows(layout)
    assert {name for name in after if after[name] != before[name]} == {"003.jpg", "021.jpg", "new/001.jpg"}
    assert after["021.jpg"]["size_bytes"] == len("something else")
    assert after["007.jpg"] == before["007.jpg"]
    assert verify(layout).ok
    # The index knows the present files: nothing is changed any more, and shards are what they were.
    growth = grow(index, open_sources([str(archive)]), shard_size=2)
    assert (growth.changed, growth.vanished) == (0, 1)
    assert [entry.image_id for shard in index.shards()[:2] for entry in index.rows(shard)] == photos(4)


def test_a_retry_uses_the_current_size_and_version(tmp_path: Path, archive: Path) -> None:
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    (archive / "004.jpg").write_bytes(b"a mended photo")
    os.utime(archive / "004.jpg", ns=(1, 10**18))
    (archive / "009.jpg").unlink()
    redo(layout, index)
    assert rows(layout)["004.jpg"]["size_bytes"] == len("a mended photo")
    [entry] = [entry for entry in index.rows(index.shard(2)) if entry.image_id == "004.jpg"]
    assert (entry.size_bytes, entry.version) == (len("a mended photo"), str(10**18))
    assert grow(index, open_sources([str(archive)]), shard_size=2).changed == 0


def test_a_damaged_plan_raises(tmp_path: Path, archive: Path) -> None:
    layout = layout_of(tmp_path / "out")
    drive(layout, [str(archive)])
    (layout.retry_dir / "plan.json").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"plan\.json is damaged .*Delete it"):
        RedoPlan.load(layout)


def test_redo_on_s3_aborts_uploads_of_killed_writers(archive: Path) -> None:
    with s3_server("archive") as storage:
        bucket = Location.parse("s3://archive", storage)
        for name in photos(9):
            (bucket / "photos" / name).write_bytes(name.encode())
        layout = RunLayout(bucket / "out")
        index = drive(layout, ["s3://archive/photos"], storage=storage)
        redo(layout, index, storage=storage)
        assert verify(layout).errors == {}
        assert layout.retry_dir.names() == []
        files: Any = layout.root._files()
        for key in ("out/part-00000000-00000003.parquet", "other/file"):
            files._fs.call_s3("create_multipart_upload", Bucket="archive", Key=key)
        assert layout.root.abort_uploads("part-") == 1
        left = files._fs.call_s3("list_multipart_uploads", Bucket="archive")["Uploads"]
        assert [upload["Key"] for upload in left] == ["other/file"]
        assert Location.parse("/tmp").abort_uploads("part-") == 0
