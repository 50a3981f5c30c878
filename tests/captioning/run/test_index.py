import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.errors import InputError, StorageError
from captioning.run import index as index_module
from captioning.run.digests import DigestSet, digests, find
from captioning.run.growth import grow
from captioning.run.index import Index, choose_shard_size, write_segment
from captioning.run.layout import PartRange, RunLayout
from captioning.run.sources import open_sources
from captioning.run.staging import pending_shards
from captioning.run.verify import verify
from tests.captioning.run.runs import caption, drive, layout_of, make_archive, make_tar, photos, table


def test_the_shard_size_comes_from_the_size_of_the_archive_alone() -> None:
    sizes = [choose_shard_size(images) for images in (1, 100, 7235, 32768, 10**8)]
    assert sizes == [8, 8, 64, 256, 512]
    every = [choose_shard_size(images) for images in range(1, 40000, 7)]
    assert every == sorted(every)
    assert all(size % 8 == 0 for size in every)


def test_the_default_shard_size(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(20))
    pending = write_segment(layout_of(tmp_path / "out"), open_sources([str(archive)]))
    assert (pending.shard_size, pending.rows) == (8, 20)
    assert [shard.rows for shard in pending.commit().shards()] == [8, 8, 4]


@pytest.mark.usefixtures("small_parts")
def test_shards_cover_the_archive_in_order(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(21))
    layout = layout_of(tmp_path / "out")
    index = write_segment(layout, open_sources([str(archive)]), shard_size=2).commit()
    shards = index.shards()
    assert [shard.number for shard in shards] == list(range(11))
    assert [shard.start for shard in shards] == list(range(0, 22, 2))
    assert shards[-1].rows == 1
    assert [entry.image_id for shard in shards for entry in index.rows(shard)] == photos(21)
    assert index.ranges() == [PartRange(0, 3), PartRange(4, 7), PartRange(8, 10)]
    assert index.rows_total == 21
    assert pickle.loads(pickle.dumps(index)) == index
    # A shard is a row group: its rows are read without the others.
    for name in index.segments[0].files:
        file = pq.ParquetFile(layout.index_dir.local_path / name)
        assert all(file.metadata.row_group(group).num_rows <= 2 for group in range(file.num_row_groups))


def test_an_uncommitted_segment_is_not_part_of_the_index(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(5))
    layout = layout_of(tmp_path / "out")
    left = write_segment(layout, open_sources([str(archive)]), shard_size=2)
    assert Index.load(layout).segments == ()
    index = write_segment(layout, open_sources([str(archive)]), shard_size=2).commit()
    assert [name for name in layout.index_dir.names() if name.endswith(".parquet")] == list(index.segments[0].files)
    left.discard()
    assert Index.load(layout) == index


@pytest.mark.usefixtures("small_parts")
def test_growth_adds_a_segment_and_changes_nothing_else(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(11, "m/"))
    layout = layout_of(tmp_path / "out")
    drive(layout, [str(archive)])
    before = {part.name: layout.part(part).read_bytes() for part in layout.parts()}
    assert list(before) == ["part-00000000-00000003.parquet", "part-00000004-00000005.parquet"]
    make_archive(archive, ["a.jpg", "m/005b.jpg", "z.jpg"])
    index = drive(layout, [str(archive)])
    assert [part.name for part in layout.parts()] == [*before, "part-00000006-00000007.parquet"]
    assert {name: layout.root.local_path.joinpath(name).read_bytes() for name in before} == before
    new = [entry.image_id for shard in index.shards()[6:] for entry in index.rows(shard)]
    assert new == ["a.jpg", "m/005b.jpg", "z.jpg"]
    assert len(table(layout)) == 14
    assert verify(layout).ok
    make_archive(archive, photos(9, "n/"))
    drive(layout, [str(archive)])
    assert [(part.first, part.last) for part in layout.parts()] == [(0, 3), (4, 5), (6, 7), (8, 11), (12, 12)]
    assert verify(layout).ok


def test_growth_reports_changed_and_vanished_images(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(10))
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    sources = open_sources([str(archive)])
    same = grow(index, sources, shard_size=2)
    assert (same.pending, same.new, same.changed, same.vanished, same.lines()) == (None, 0, 0, 0, [])
    (archive / "003.jpg").write_bytes(b"another photo")
    for number in (5, 6, 7, 8, 9, 0):
        (archive / f"{number:03d}.jpg").unlink()
    growth = grow(index, sources, shard_size=2)
    assert (growth.new, growth.changed, growth.vanished) == (0, 1, 6)
    assert growth.changed_examples == ("003.jpg",)
    assert growth.vanished_examples == ("000.jpg", "005.jpg", "006.jpg", "007.jpg", "008.jpg")
    changed, vanished = growth.lines()
    assert "003.jpg" in changed
    assert vanished.startswith("6 images no longer in the archive")
    assert vanished.endswith("008.jpg, …): rows kept.")
    before = table(layout)
    drive(layout, [str(archive)])
    assert table(layout) == before


def test_adding_to_a_tar_changes_none_of_its_images(tmp_path: Path) -> None:
    members = [("1.jpg", b"one"), ("2.jpg", b"two")]
    tar = make_tar(tmp_path / "x.tar", members)
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(tar)])
    make_tar(tar, [*members, ("3.jpg", b"three")])
    os.utime(tar, (10**9, 10**9))
    growth = grow(index, open_sources([str(tar)]), shard_size=2)
    assert (growth.new, growth.changed, growth.vanished) == (1, 0, 0)


def test_a_new_tar_takes_no_key_of_existing_tars(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    make_tar(tars / "b.tar", [("1.jpg", b"b one"), ("2.jpg", b"b two")])
    layout = layout_of(tmp_path / "out")
    drive(layout, [str(tars)])
    make_tar(tars / "a.tar", [("1.jpg", b"a one")])
    make_tar(tars / "c.tar", [("1.jpg", b"c one"), ("3.jpg", b"c three")])
    growth = grow(Index.load(layout), open_sources([str(tars)]), shard_size=2)
    assert (growth.new, growth.changed, growth.vanished) == (3, 0, 0)
    drive(layout, [str(tars)])
    assert uris_of(layout) == {
        "1": "b.tar#1.jpg",
        "2": "b.tar#2.jpg",
        "a/1": "a.tar#1.jpg",
        "c/1": "c.tar#1.jpg",
        "3": "c.tar#3.jpg",
    }


def uris_of(layout: RunLayout) -> dict[str, str]:
    return {row["image_id"]: row["uri"].rpartition("/")[2] for row in table(layout)}


def test_ids_stay_when_a_tar_grows_goes_or_has_another_name(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    make_tar(tars / "a.tar", [("0.jpg", b"a0"), ("k.jpg", b"ak")])
    make_tar(tars / "b.tar", [("k.jpg", b"bk")])
    layout = layout_of(tmp_path / "out")
    drive(layout, [str(tars)])
    assert uris_of(layout) == {"0": "a.tar#0.jpg", "k": "a.tar#k.jpg", "b/k": "b.tar#k.jpg"}

    # A key that another tar's image has is no id for a new one, whatever comes first.
    make_tar(tars / "b.tar", [("k.jpg", b"bk"), ("n.jpg", b"bn")])
    drive(layout, [str(tars)])
    make_tar(tars / "a.tar", [("0.jpg", b"a0"), ("k.jpg", b"ak"), ("n.jpg", b"an")])
    growth = grow(Index.load(layout), open_sources([str(tars)]), shard_size=2)
    assert (growth.new, growth.changed, growth.vanished) == (1, 0, 0)
    drive(layout, [str(tars)])
    more = {"n": "b.tar#n.jpg", "a/n": "a.tar#n.jpg"}
    assert uris_of(layout) == {"0": "a.tar#0.jpg", "k": "a.tar#k.jpg", "b/k": "b.tar#k.jpg", **more}

    # Of a tar that is gone the others take no ids.
    (tars / "a.tar").rename(tmp_path / "kept")
    growth = grow(Index.load(layout), open_sources([str(tars)]), shard_size=2)
    assert (growth.new, growth.changed, growth.vanished) == (0, 0, 3)

    # With another name it is the same archive at another place.
    (tmp_path / "kept").rename(tars / "z.tar")
    growth = grow(Index.load(layout), open_sources([str(tars)]), shard_size=2)
    assert (growth.new, growth.changed, growth.vanished) == (1, 2, 1)
    assert growth.changed_examples == ("0", "k")


def test_files_captioned_just_now_do_not_count_as_changed(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(4))
    tar = make_tar(tmp_path / "x.tar", [("1.jpg", b"one")])
    layout = layout_of(tmp_path / "out")
    inputs = [str(archive), str(tar)]
    index = drive(layout, inputs)
    for photo in archive.iterdir():
        photo.write_bytes(b"another photo")
    make_tar(tar, [("0.jpg", b"zero"), ("1.jpg", b"one")])
    growth = grow(index, open_sources(inputs), shard_size=2, just_captioned={1, 2})
    # What lies in a tar may not be what was looked for there.
    assert growth.changed_examples == ("000.jpg", "001.jpg", "1")
    again = grow(index, open_sources(inputs), shard_size=2)
    assert again.changed_examples == ("000.jpg", "001.jpg", "1")


def test_a_row_with_another_uri_than_before_has_changed(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(4))
    listed = tmp_path / "list.parquet"
    names = [str(archive / name) for name in photos(4)]
    pq.write_table(pa.table({"url": names}), listed)
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(listed)])
    assert grow(index, open_sources([str(listed)]), shard_size=2).changed == 0
    pq.write_table(pa.table({"url": [names[1], names[0], *names[2:]]}), listed)
    growth = grow(index, open_sources([str(listed)]), shard_size=2)
    assert (growth.new, growth.changed, growth.vanished) == (0, 2, 0)
    assert growth.changed_examples == ("list.parquet#0", "list.parquet#1")


def test_an_added_input_must_have_images(tmp_path: Path) -> None:
    archive, empty = make_archive(tmp_path / "a", photos(4)), tmp_path / "empty"
    empty.mkdir()
    index = drive(layout_of(tmp_path / "out"), [str(archive)])
    sources = open_sources([str(archive), str(empty)])
    assert grow(index, sources, shard_size=2).new == 0
    with pytest.raises(InputError, match="contains no image"):
        grow(index, sources, shard_size=2, added=[str(empty)])


def test_an_unfinished_run_keeps_its_index(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(6))
    layout = layout_of(tmp_path / "out")
    index = write_segment(layout, open_sources([str(archive)]), shard_size=2).commit()
    make_archive(archive, ["000a.jpg"])
    again = Index.load(layout)
    assert [entry.image_id for shard in again.shards() for entry in again.rows(shard)] == photos(6)
    caption(layout, again)
    assert pending_shards(layout, index) == []
    assert grow(index, open_sources([str(archive)]), shard_size=2).new == 1


def test_growth_refuses_ids_in_two_inputs(tmp_path: Path) -> None:
    make_archive(tmp_path / "a", ["x.jpg"])
    make_archive(tmp_path / "b", ["y.jpg"])
    inputs = [str(tmp_path / "a"), str(tmp_path / "b")]
    index = drive(layout_of(tmp_path / "out"), inputs)
    make_archive(tmp_path / "b", ["x.jpg"])
    with pytest.raises(InputError, match=r"'x\.jpg'"):
        grow(index, open_sources(inputs), shard_size=2)


def test_repeated_ids_leave_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "SHARDS_PER_PART", 2)
    make_archive(tmp_path / "a", photos(9))
    make_archive(tmp_path / "b", ["008.jpg"])
    layout = layout_of(tmp_path / "out")
    with pytest.raises(InputError, match=r"'008\.jpg'"):
        write_segment(layout, open_sources([str(tmp_path / "a"), str(tmp_path / "b")]), shard_size=2)
    assert layout.index_dir.names() == []


def test_a_damaged_index_raises(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(5))
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    file = layout.index_dir / index.segments[0].files[0]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(StorageError, match="damaged"):
        index.rows(index.shard(0))
    assert any("damaged" in problem for problem in verify(layout).problems)
    (layout.index_dir / "segment-0000.json").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"segment-0000\.json"):
        Index.load(layout)


def test_a_set_of_digests_is_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DigestSet, "_MAX_RECENT", 16)
    rng = np.random.default_rng(0)
    seen: set[str] = set()
    digest_set = DigestSet()
    for size in (1, 3, 50, 7, 0, 200, 16, 40):
        batch = [str(number) for number in rng.integers(0, 300, size)]
        expected = []
        for text in batch:
            expected.append(text not in seen)
            seen.add(text)
        assert digest_set.add(digests(batch)).tolist() == expected


def test_digests_are_found_even_where_their_first_halves_are_equal() -> None:
    ordered = digests(["a", "b", "c", "d"]).copy()
    ordered["high"] = [1, 5, 5, 9]
    wanted = ordered[[2, 1, 3, 0]].copy()
    assert find(ordered, wanted).tolist() == [2, 1, 3, 0]
    wanted["low"] += 1
    assert find(ordered, wanted).tolist() == [-1, -1, -1, -1]
