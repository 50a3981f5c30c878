import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from captioning.run.index import write_segment
from captioning.run.sources import Entry, open_sources
from captioning.run.staging import fold, pending_shards, staged_shards, write_staged
from captioning.run.table import SCHEMA, Row, read_table, rows_to_table, schema_description
from tests.captioning.run.runs import drive, layout_of, make_archive, photos, shard_rows, table


def test_the_columns_are_those_of_the_contract() -> None:
    assert schema_description() == {
        "image_id": "string",
        "uri": "string",
        "caption": "string",
        "score": "float",
        "num_tokens": "int16",
        "alternatives": "list<item: struct<caption: string, score: float>>",
        "status": "string",
        "error_class": "string",
        "error_message": "string",
        "width": "int32",
        "height": "int32",
        "size_bytes": "int64",
        "model": "string",
    }


def test_rows_become_a_table_and_come_back() -> None:
    entry = Entry("x.jpg", "/a/x.jpg", 12)
    good = Row(
        image_id="y.jpg",
        uri="/a/y.jpg",
        caption="a cat",
        score=-0.25,
        num_tokens=3,
        alternatives=(("a cat", -0.25), ("a dog", -0.5)),
        width=4,
        height=3,
        size_bytes=99,
        model="toy",
    )
    bad = Row.failed(entry, "decode", "lone \udce9 and " + "long " * 999, model="toy", width=4, height=3)
    made = rows_to_table([good, bad])
    assert made.schema.equals(SCHEMA)
    first, second = made.to_pylist()
    assert first["alternatives"] == [{"caption": "a cat", "score": -0.25}, {"caption": "a dog", "score": -0.5}]
    assert (first["status"], first["error_class"], first["num_tokens"]) == ("ok", None, 3)
    assert (second["status"], second["caption"], second["score"], second["alternatives"]) == ("error", None, None, [])
    assert (second["size_bytes"], second["width"]) == (12, 4)
    assert second["error_message"].startswith(r"lone \udce9 and long")
    assert len(second["error_message"]) == 1000


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(4))
    layout = layout_of(tmp_path / "out")
    index = write_segment(layout, open_sources([str(archive)]), shard_size=4).commit()
    shard = index.shards()[0]
    write_staged(layout, shard, shard_rows(index, shard))
    first = layout.staged(0).read_bytes()
    write_staged(layout, shard, shard_rows(index, shard))
    assert layout.staged(0).read_bytes() == first
    assert staged_shards(layout) == {0}
    assert layout.tmp_dir.names() == []


def test_a_shard_with_a_wrong_number_of_rows_is_a_bug(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(4))
    layout = layout_of(tmp_path / "out")
    index = write_segment(layout, open_sources([str(archive)]), shard_size=4).commit()
    shard = index.shards()[0]
    rows = shard_rows(index, shard)
    with pytest.raises(AssertionError):
        write_staged(layout, shard, rows[1:])
    with pytest.raises(AssertionError):
        write_staged(layout, shard, [*rows[1:], rows[1]])


@pytest.mark.usefixtures("small_parts")
def test_a_part_waits_for_all_its_shards(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(10))
    layout = layout_of(tmp_path / "out")
    index = write_segment(layout, open_sources([str(archive)]), shard_size=2).commit()
    shards = index.shards()
    for number in (4, 0, 1, 3):
        write_staged(layout, shards[number], shard_rows(index, shards[number]))
    assert [part.name for part in fold(layout, index).folded] == ["part-00000004-00000004.parquet"]
    assert staged_shards(layout) == {0, 1, 3}
    assert [shard.number for shard in pending_shards(layout, index)] == [2]
    write_staged(layout, shards[2], shard_rows(index, shards[2]))
    assert [part.name for part in fold(layout, index).folded] == ["part-00000000-00000003.parquet"]
    assert [row["image_id"] for row in table(layout)] == photos(10)
    assert pending_shards(layout, index) == []


def test_old_temporary_files_are_deleted_and_new_ones_kept(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(4))
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    (layout.tmp_dir / "old.tmp").write_bytes(b"")
    (layout.tmp_dir / "new.tmp").write_bytes(b"")
    os.utime((layout.tmp_dir / "old.tmp").path, (0, 0))
    fold(layout, index)
    assert layout.tmp_dir.names() == ["new.tmp"]


@pytest.mark.usefixtures("small_parts")
def test_other_readers_see_only_the_table(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(11))
    layout = layout_of(tmp_path / "out")
    index = drive(layout, [str(archive)])
    late = index.shard(0)
    write_staged(layout, late, shard_rows(index, late))
    assert sorted(pd.read_parquet(layout.root.path)["image_id"]) == photos(11)
    assert ds.dataset(layout.root.path).count_rows() == 11
    names = layout.root.names()
    assert names == ["_run", "part-00000000-00000003.parquet", "part-00000004-00000005.parquet"]
    batches = list(read_table(layout, ["caption", "status"]))
    assert pa.Table.from_batches(batches).column_names == ["caption", "status"]
