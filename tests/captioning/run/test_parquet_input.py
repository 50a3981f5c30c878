"""Parquet and Arrow files as an archive: bytes, URIs, ids, kept columns, and damage."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.errors import ImageError, InputError, SettingsError, StorageError
from captioning.run import cells, columnar
from captioning.run.fetch import fetch
from captioning.run.index import Index, write_segment
from captioning.run.sources import Entry, InputSettings, kept_schema, open_sources
from captioning.run.staging import fold, write_staged
from captioning.run.table import read_table, schema_description, table_schema
from captioning.run.verify import verify
from captioning.storage import Location, StorageSettings
from tests.captioning.run.runs import layout_of, make_archive, shard_rows

KINDS = ("parquet", "arrow", "stream")


def write(path: Path, table: pa.Table, kind: str = "parquet", rows: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows)
        return path
    make: Any = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def pictures(count: int, first: int = 0) -> list[bytes]:
    return [b"picture %d" % number for number in range(first, first + count)]


def listed(*inputs: str | Path, **settings: Any) -> list[Entry]:
    sources = open_sources([str(text) for text in inputs], settings=InputSettings(**settings))
    return [entry for source in sources for entry in source.entries()]


def refused(*inputs: str | Path, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        listed(*inputs, **settings)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_an_image_and_its_bytes_come_back(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"x.{'parquet' if kind == 'parquet' else 'arrow'}", pa.table({"jpg": pictures(11)}), kind)
    found = listed(path)
    assert [entry.image_id for entry in found] == [f"{path.name}#{row}" for row in range(11)]
    assert [entry.uri for entry in found] == [f"{path}#{row}" for row in range(11)]
    assert [fetch(entry) for entry in found] == pictures(11)
    assert [fetch(entry) for entry in reversed(found)] == pictures(11)[::-1]
    assert found[0].version


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_datasets(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere.jpg").write_bytes(b"elsewhere")
    images = [
        {"bytes": b"inside", "path": "name.jpg"},
        {"bytes": None, "path": "elsewhere.jpg"},
        {"bytes": None, "path": str(tmp_path / "elsewhere.jpg")},
        None,
    ]
    path = write(tmp_path / "x.arrow", pa.table({"label": [1, 2, 3, 4], "image": images}), kind)
    found = listed(path)
    assert [fetch(entry) for entry in found[:3]] == [b"inside", b"elsewhere", b"elsewhere"]
    with pytest.raises(ImageError) as caught:
        fetch(found[3])
    assert caught.value.error_class == "empty"


def test_a_folder_or_a_glob_of_files(tmp_path: Path) -> None:
    write(tmp_path / "t/b.parquet", pa.table({"image": pictures(2)}))
    write(tmp_path / "t/a/year=2024/x.PARQUET", pa.table({"image": pictures(1, 2)}))
    write(tmp_path / "t/c.arrow", pa.table({"image": pictures(1, 3)}), "arrow")
    make_archive(tmp_path / "t", ["_SUCCESS", "_run/index/y.parquet", ".hidden.parquet", "notes.md"])
    found = listed(f"named={tmp_path / 't'}")
    assert [entry.image_id for entry in found] == [
        "named/a/year=2024/x.PARQUET#0",
        "named/b.parquet#0",
        "named/b.parquet#1",
        "named/c.arrow#0",
    ]
    assert [fetch(entry) for entry in found] == [b"picture 2", b"picture 0", b"picture 1", b"picture 3"]
    assert [entry.image_id for entry in listed(tmp_path / "t" / "**" / "*.{parquet,arrow}")] == [
        "b.parquet#0",
        "b.parquet#1",
        "c.arrow#0",
    ]
    (tmp_path / "t" / "photo.jpg").write_bytes(b"x")
    [source] = open_sources([str(tmp_path / "t")])
    assert [entry.image_id for entry in source.entries()] == ["photo.jpg"]
    assert source.skipped == {".parquet": 4, ".arrow": 1, ".md": 1, "": 1}
    make_archive(tmp_path / "both", ["x.tar", "y.parquet"])
    assert "both tars and Parquet" in refused(tmp_path / "both")


@pytest.mark.parametrize("name", ["url", "Path", "image", "file_name"])
def test_a_column_of_uris(tmp_path: Path, name: str) -> None:
    make_archive(tmp_path, ["photos/a.jpg", "photos/b é#?.jpg"])
    uris = ["photos/a.jpg", f"{tmp_path}/photos/b é#?.jpg", "s3://bucket/c.jpg", None, ""]
    found = listed(write(tmp_path / "x.parquet", pa.table({"caption": ["x"] * 5, name: uris, "n": [1.0] * 5})))
    assert [entry.image_id for entry in found] == [f"x.parquet#{row}" for row in range(5)]
    assert found[0].uri == f"{tmp_path}/photos/a.jpg"
    assert found[2].uri == "s3://bucket/c.jpg"
    assert [fetch(entry) for entry in found[:2]] == [b"photos/a.jpg", "photos/b é#?.jpg".encode()]
    for entry in found[3:]:
        assert entry.uri == f"{tmp_path}/x.parquet#{entry.row}"
        with pytest.raises(ImageError) as caught:
            fetch(entry)
        assert caught.value.error_class == "empty"


def test_bytes_that_are_not_utf8_in_uris_and_ids(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        (tmp_path / name).write_bytes(b"coffee")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    raw = pa.array([b"caf\xe9.jpg"], pa.binary())
    table = pa.table({"path": pa.Array.from_buffers(pa.string(), 1, raw.buffers()), "key": raw})
    [entry] = listed(write(tmp_path / "x.parquet", table), id_column="key", image_column="path")
    assert entry.image_id == r"caf\xe9.jpg"
    assert fetch(entry) == b"coffee"


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["one", None, ""], ["one", "x.parquet#1", "x.parquet#2"]),
        ([7, 8, 9], ["7", "8", "9"]),
        (pa.array(["a", "b", "c"]).dictionary_encode(), ["a", "b", "c"]),
        (pa.array(["é", "b", "c"], pa.large_string()), ["é", "b", "c"]),
    ],
)
def test_an_id_column(tmp_path: Path, ids: Any, expected: list[str]) -> None:
    path = write(tmp_path / "x.parquet", pa.table({"image": pictures(3), "key": ids}))
    assert [entry.image_id for entry in listed(path, id_column="key")] == expected
    assert [fetch(entry) for entry in listed(path, id_column="key")] == pictures(3)


def test_a_row_of_a_table_that_was_written_again_is_not_fetched_by_another_id(tmp_path: Path) -> None:
    def make(keys: list[str], first: int) -> Path:
        table = pa.table({"key": keys, "jpg": pictures(len(keys), first)})
        return write(tmp_path / "x.parquet", table)

    by_id = listed(make(["a", "b"], 0), id_column="key")
    by_row = listed(tmp_path / "x.parquet")
    time.sleep(0.02)
    make(["z", "a", "b"], 9)
    with pytest.raises(StorageError, match="rewritten since it was listed") as refused_now:
        fetch(by_id[1])
    assert refused_now.value.error_class == "changed"
    # What goes by its row is what is in the row.
    assert fetch(by_row[1]) == b"picture 10"


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t" / "a.parquet", pa.table({"image": pictures(2), "key": ["x", "y"]}))
    write(tmp_path / "t" / "b.parquet", pa.table({"image": pictures(2), "key": ["z", "y"]}))
    message = refused(tmp_path / "t", id_column="key")
    assert "'y' appears twice in column 'key'" in message
    assert "b.parquet" in message
    assert len(listed(tmp_path / "t")) == 4


def test_an_unsuitable_column_is_refused_with_a_list_of_columns(tmp_path: Path) -> None:
    two = write(tmp_path / "two.parquet", pa.table({"left": pictures(1), "right": pictures(1)}))
    none = write(tmp_path / "none.parquet", pa.table({"text": ["a"], "n": [1.5]}))
    assert "left, right" in refused(two)
    assert "input.image_column=left" in refused(two)
    assert [fetch(entry) for entry in listed(two, image_column="right")] == pictures(1)
    assert "text (string), n (double)" in refused(none)
    assert "no such column" in refused(two, image_column="middle")
    assert "left (binary)" in refused(two, image_column="middle")
    assert "holds double" in refused(none, image_column="n")
    assert "no such column" in refused(two, image_column="left", id_column="key")
    assert "cannot be an image id" in refused(none, image_column="text", id_column="n")


def test_damaged_files_are_noted_and_the_rest_is_read(tmp_path: Path) -> None:
    good = write(tmp_path / "t" / "b.parquet", pa.table({"image": pictures(3)}))
    (tmp_path / "t" / "a.parquet").write_bytes(good.read_bytes()[:-20])
    (tmp_path / "t" / "c.parquet").write_bytes(b"")
    (tmp_path / "t" / "d.parquet").write_bytes(b"FEA1 and so on")
    stream = write(tmp_path / "t" / "e.arrow", pa.table({"image": [bytes(2000)] * 8}), "stream")
    stream.write_bytes(stream.read_bytes()[:-300])
    [source] = open_sources([str(tmp_path / "t")])
    assert [entry.image_id for entry in source.entries()] == [
        *(f"b.parquet#{row}" for row in range(3)),
        *(f"e.arrow#{row}" for row in range(4)),
    ]
    assert len(source.notes) == 4
    for name, note in zip(("a.parquet", "c.parquet", "Feather version 1", "e.arrow"), source.notes, strict=True):
        assert name in note
    with pytest.raises(InputError, match=r"contains no row.*damaged"):
        write_segment(layout_of(tmp_path / "out"), open_sources([str(tmp_path / "t" / "a.parquet")]))


def test_damage_within_a_row_group_costs_that_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"image": [os.urandom(3000) for _ in range(30)]}),
        path,
        row_group_size=10,
        compression="zstd",
        use_dictionary=False,
    )
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 60] = os.urandom(60)
    path.write_bytes(data)
    opened: list[int] = []
    batches = columnar._Parquet.batches
    monkeypatch.setattr(
        columnar._Parquet, "batches", lambda self, *args, **given: opened.append(1) or batches(self, *args, **given)
    )
    failed = []
    for entry in (found := listed(path)):
        try:
            assert len(fetch(entry)) == 3000
        except StorageError as error:
            failed.append((entry.row, error.error_class, "x.parquet is damaged" in error.message))
    assert len(found) == 30
    assert failed == [(row, "storage", True) for row in range(10, 20)]
    assert len(opened) <= 4, "the damaged row group is not read for every row of it"


def test_rows_in_order_read_a_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", pa.table({"image": pictures(1000)}), rows=500)
    read: list[int] = []
    batches = columnar._Parquet.batches

    def counted(self: Any, columns: Sequence[str], *, start: int, rows: int) -> Any:
        for first, batch in batches(self, columns, start=start, rows=rows):
            read.append(batch.num_rows)
            yield first, batch

    found = listed(path)
    monkeypatch.setattr(columnar._Parquet, "batches", counted)
    assert [fetch(entry) for entry in found] == pictures(1000)
    assert sum(read) == 1000
    # Threads ask a little out of order.
    read.clear()
    cells._readers.clear()
    for at in range(0, 1000, 2):
        assert fetch(found[at + 1]) == b"picture %d" % (at + 1)
        assert fetch(found[at]) == b"picture %d" % at
    assert sum(read) == 1000


def test_a_file_written_again_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", pa.table({"image": pictures(3)}))
    assert fetch(listed(path)[1]) == b"picture 1"
    path.unlink()
    write(path, pa.table({"image": pictures(3, 10)}))
    os.utime(path, ns=(1, 1))
    assert fetch(listed(path)[1]) == b"picture 11"


def test_many_threads_get_their_own_rows(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    paths = [write(tmp_path / f"{n}.parquet", pa.table({"image": pictures(50, 50 * n)}), rows=20) for n in range(6)]
    found = [entry for path in paths for entry in listed(path)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(fetch, found)) == pictures(300)


def run(layout: Any, index: Index) -> None:
    for shard in index.shards():
        write_staged(layout, shard, shard_rows(index, shard), index.kept(shard))
    fold(layout, index)


def test_kept_columns_come_into_the_table(tmp_path: Path) -> None:
    times = pa.array([10**18 + 1, None, 3], pa.timestamp("ns"))
    first = pa.table(
        {
            "image": pictures(3),
            "license": ["by", None, "sa"],
            "taken": times,
            "n": pa.array([1, 2, 3], pa.int16()),
            "tags": [["a", "b"], [], None],
            "place": [{"lat": 1.5, "name": "x"}, None, {"lat": None, "name": "y"}],
            "kind": pa.array(["k", "l", "k"]).dictionary_encode(),
        }
    )
    second = pa.table({"image": pictures(2, 3), "license": pa.array(["x", "y"], pa.large_string()), "n": [4, None]})
    paths = [write(tmp_path / "a.parquet", first), write(tmp_path / "b.arrow", second, "arrow")]
    make_archive(tmp_path / "photos", ["p.jpg"])
    wanted = ("taken", "license", "n", "tags", "place", "kind")
    sources = open_sources([str(tmp_path / "photos"), *map(str, paths)], settings=InputSettings(keep_columns=wanted))
    kept = kept_schema(sources)
    assert kept.names == list(wanted)
    layout = layout_of(tmp_path / "out")
    write_segment(layout, sources, shard_size=2).commit()
    index = Index.load(layout)
    assert index.kept_schema == kept
    run(layout, index)
    layout.run_json.write_bytes(b"{}")
    assert verify(layout).ok, verify(layout).problems
    made = pa.Table.from_batches(list(read_table(layout)))
    assert made.schema.names == table_schema(kept).names
    rows = {row["image_id"]: row for row in made.drop_columns(["taken"]).to_pylist()}
    assert {name: rows["p.jpg"][name] for name in wanted[1:]} == dict.fromkeys(wanted[1:])
    assert rows["a.parquet#0"] | {"n": 1, "license": "by", "tags": ["a", "b"], "kind": "k"} == rows["a.parquet#0"]
    assert rows["a.parquet#0"]["place"] == {"lat": 1.5, "name": "x"}
    assert rows["a.parquet#2"]["tags"] is None
    assert (rows["b.arrow#0"]["n"], rows["b.arrow#0"]["license"], rows["b.arrow#0"]["tags"]) == (4, "x", None)
    ids = made["image_id"].to_pylist()
    assert made["taken"][ids.index("a.parquet#0")].value == 10**18 + 1
    described = schema_description(kept)
    assert described["n"] == "int16"
    assert described.items() > schema_description().items()


def test_impossible_kept_columns_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"image": pictures(1), "uri": [1], "n": [1]}))
    write(tmp_path / "b.parquet", pa.table({"image": pictures(1), "n": ["many"]}))

    def keep(text: Path, *names: str) -> None:
        sources = open_sources([str(text)], settings=InputSettings(keep_columns=names))
        table_schema(kept_schema(sources))
        write_segment(layout_of(tmp_path / "out"), sources)

    with pytest.raises(InputError, match="'m', but no INPUT"):
        keep(path, "m")
    with pytest.raises(InputError, match="has its own column of that name"):
        keep(path, "uri")
    with pytest.raises(InputError, match="'n' of .*b.parquet holds string"):
        keep(tmp_path / "*.parquet", "n")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out" / "_run" / "index").iterdir())
    from captioning.config import read_settings

    with pytest.raises(SettingsError, match="twice"):
        read_settings(InputSettings, "keep_columns: [a, a]")


def test_an_index_without_the_new_columns_is_still_read(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "out")
    make_archive(tmp_path / "in", ["a.jpg", "b.jpg"])
    index = write_segment(layout, open_sources([str(tmp_path / "in")]), shard_size=1).commit()
    entries = [entry for shard in index.shards() for entry in index.rows(shard)]
    for name in index.segments[0].files:
        path = (layout.index_dir / name).local_path
        old = pq.read_table(path).drop_columns(["table", "column", "row"])
        pq.write_table(old, path, row_group_size=1)
    marker = layout.index_dir.local_path / "segment-0000.json"
    marker.write_text(marker.read_text().replace(',\n "kept": ""', ""))
    assert "kept" not in marker.read_text()
    loaded = Index.load(layout)
    assert [entry for shard in loaded.shards() for entry in loaded.rows(shard)] == entries
    assert [entry for batch in loaded.batches() for entry in batch] == entries


def test_web_addresses_in_a_column_are_refused_unless_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", pa.table({"url": ["a.jpg", "HTTPS://example.org/a.jpg"]}))
    assert "row 1 of" in refused(path)
    assert "storage.allow_http=true" in refused(path)
    [source] = open_sources([str(path)], StorageSettings(allow_http=True))
    assert [entry.uri for entry in source.entries()][1].lower() == "https://example.org/a.jpg"
    hidden = write(tmp_path / "y.parquet", pa.table({"image": [{"bytes": None, "path": "http://example.org/a.jpg"}]}))
    [entry] = listed(hidden)
    with pytest.raises(ImageError, match="allow_http") as caught:
        fetch(entry)
    assert caught.value.error_class == "forbidden"


def test_locations_of_images_survive_the_index(tmp_path: Path) -> None:
    path = write(tmp_path / "x y#1.parquet", pa.table({"image": pictures(5)}))
    layout = layout_of(tmp_path / "out")
    sources = open_sources([str(path)])
    index = write_segment(layout, sources, shard_size=2).commit()
    rows = [entry for shard in index.shards() for entry in index.rows(shard)]
    assert rows == list(sources[0].entries())
    assert [fetch(entry) for entry in rows] == pictures(5)
    assert Location.from_uri(rows[0].table or "").local_path == path
