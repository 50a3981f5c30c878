import os
from pathlib import Path

import pytest

from captioning.errors import ImageError, InputError
from captioning.run.fetch import FetchSettings, fetch
from captioning.run.index import Index, write_segment
from captioning.run.sources import Entry, open_sources
from captioning.storage import Location, StorageSettings
from tests.captioning.run.runs import layout_of, make_archive, make_tar, photos


def ids(*inputs: str | Path) -> list[str]:
    return [entry.image_id for source in open_sources([str(text) for text in inputs]) for entry in source.entries()]


def refused(tmp_path: Path, *inputs: str | Path) -> str:
    layout = layout_of(tmp_path / "out")
    with pytest.raises(InputError) as caught:
        write_segment(layout, open_sources([str(text) for text in inputs]))
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_a_folder_gives_paths_below_it_and_counts_skipped_files(tmp_path: Path) -> None:
    make_archive(tmp_path, ["b/2.JPG", "a.png", "b/1.webp", "b.gif", "notes.txt", "b/Thumbs.db", "README", ".hidden"])
    source = open_sources([str(tmp_path)])[0]
    entries = list(source.entries())
    assert [entry.image_id for entry in entries] == ["a.png", "b.gif", "b/1.webp", "b/2.JPG"]
    assert dict(source.skipped) == {".txt": 1, ".db": 1, "": 2}
    assert entries[0].uri == str(tmp_path / "a.png")
    assert entries[0].size_bytes == len("a.png")
    assert fetch(entries[3]) == b"b/2.JPG"
    assert list(source.entries()) == entries
    assert dict(source.skipped) == {".txt": 1, ".db": 1, "": 2}


def test_names_that_are_not_utf8_are_escaped_and_fetched(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        make_archive(tmp_path, ["plain.jpg"])
        (tmp_path / name).write_bytes(b"coffee")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / r"caf\xe9.jpg").write_bytes(b"other")
    found = {fetch(entry): entry for entry in open_sources([str(tmp_path)])[0].entries()}
    entry, other = found[b"coffee"], found[b"other"]
    assert entry.image_id == r"caf\xe9.jpg"
    assert other.image_id == r"caf\x5cxe9.jpg"
    index = write_segment(layout_of(tmp_path / "out"), open_sources([str(tmp_path)])).commit()
    assert entry in index.rows(index.shards()[0])


@pytest.mark.parametrize("at", ["out", "deep/out", "."])
def test_a_run_within_its_archive_is_no_part_of_it(tmp_path: Path, at: str) -> None:
    make_archive(tmp_path, ["a.parquet", "out/b.parquet", "deep/c.parquet", "out.jpg.parquet"])
    output = Location.parse(str(tmp_path)) / at if at != "." else Location.parse(str(tmp_path))
    for name in ("part-00000000-00000255.parquet", "_run/index/segment-0000.parquet", "_run/run.json"):
        (output / name).write_bytes(b"")
    for given in (str(tmp_path), f"{tmp_path}/**", f"{tmp_path}/**/*.parquet"):
        [source] = open_sources([given], output=output)
        found = [file.path for file, _ in source._containers()]
        assert found == ["a.parquet", "deep/c.parquet", "out.jpg.parquet", "out/b.parquet"]
        assert not source.skipped


def test_a_folder_keeps_its_kind(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("1.jpg", b"one")])
    [source] = open_sources([str(tmp_path)])
    make_archive(tmp_path, ["preview.jpg", "more.parquet"])
    assert open_sources([str(tmp_path)])[0].kind == "images"
    [again] = open_sources([str(tmp_path)], kinds={source.given: source.kind})
    assert [entry.image_id for entry in again.entries()] == ["1"]


def test_one_image_and_its_name(tmp_path: Path) -> None:
    make_archive(tmp_path, ["deep/x.jpg"])
    assert ids(tmp_path / "deep" / "x.jpg") == ["x.jpg"]
    assert ids(f"one={tmp_path / 'deep' / 'x.jpg'}") == ["one/x.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg", "b.jpg"]),
        ("?.jpg", ["a.jpg", "b.jpg"]),
        ("[!a].jpg", ["b.jpg"]),
        ("*/*.jpg", ["x/c.jpg", "y/d.jpg"]),
        ("**/*.jpg", ["a.jpg", "b.jpg", "x/c.jpg", "x/z/e.jpg", "y/d.jpg"]),
        ("x/**", ["c.jpg", "z/e.jpg"]),
        ("{x,y}/*.{jpg,png}", ["x/c.jpg", "y/d.jpg", "y/f.png"]),
        ("x/*/e.jpg", ["z/e.jpg"]),
    ],
)
def test_a_glob_gives_the_paths_below_its_fixed_part(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    if pattern.startswith("x/"):
        expected = sorted(expected)
    make_archive(tmp_path, ["a.jpg", "b.jpg", "x/c.jpg", "x/z/e.jpg", "y/d.jpg", "y/f.png"])
    assert ids(tmp_path / pattern) == expected


def test_a_name_with_a_bracket_that_exists_is_no_glob(tmp_path: Path) -> None:
    make_archive(tmp_path, ["[2024] photos/x.jpg", "a[1].jpg"])
    assert ids(tmp_path / "a[1].jpg") == ["a[1].jpg"]
    assert ids(tmp_path / "[2024] photos") == ["x.jpg"]


def test_tars_keep_their_keys(tmp_path: Path) -> None:
    big = os.urandom(2000)
    first = make_tar(tmp_path / "a-000.tar", [("k/0001.jpg", b"one"), ("k/0001.json", b"{}"), ("0002.png", big)])
    make_tar(tmp_path / "a-001.tar", [("0002.jpg", b"again"), ("0003.jpg", b"three"), ("0003.webp", b"two in one")])
    entries = list(open_sources([str(first)])[0].entries())
    assert [entry.image_id for entry in entries] == ["k/0001", "0002"]
    assert entries[0].uri == f"{first}#k/0001.jpg"
    assert fetch(entries[1]) == big
    for pattern in ("a-*.tar", "a-{000..001}.tar"):
        source = open_sources([str(tmp_path / pattern)])[0]
        entries = list(source.entries())
        assert [entry.image_id for entry in entries] == ["k/0001", "0002", "a-001/0002", "0003", "a-001/0003"]
        assert [fetch(entry) for entry in entries[2:]] == [b"again", b"three", b"two in one"]
        assert dict(source.skipped) == {".json": 1}


def test_long_names_in_a_tar(tmp_path: Path) -> None:
    name = "d" * 90 + "/" + "n" * 150
    tar = make_tar(tmp_path / "x.tar", [(f"{name}.jpg", b"long"), ("é/ü.jpg", b"wide")])
    entries = list(open_sources([str(tar)])[0].entries())
    assert [entry.image_id for entry in entries] == [name, "é/ü"]
    assert [fetch(entry) for entry in entries] == [b"long", b"wide"]


def test_a_tar_with_garbage_in_the_middle_has_a_note(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "x.tar", [("1.jpg", b"a"), ("2.jpg", b"b"), ("3.jpg", b"c")])
    data = bytearray(tar.read_bytes())
    data[1024:1536] = b"x" * 512
    tar.write_bytes(data)
    source = open_sources([str(tar)])[0]
    assert [entry.image_id for entry in source.entries()] == ["1", "3"]
    assert "damaged" in source.notes[0]


def test_a_file_that_is_no_tar_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"rubbish" * 999)
    assert "not a readable tar" in refused(tmp_path, tmp_path / "x.tar")


def test_a_list_gives_its_lines(tmp_path: Path) -> None:
    make_archive(tmp_path, ["photos/a.jpg", "b.jpg"])
    listing = tmp_path / "list.txt"
    listing.write_text(f"photos/a.jpg\n\n{tmp_path}/b.jpg\r\ns3://bucket/c.jpg\nphotos/a.jpg\nhttps://x.org/d?id=1\n")
    source = open_sources([str(listing)], StorageSettings(allow_http=True))[0]
    entries = list(source.entries())
    assert [entry.image_id for entry in entries] == [
        "photos/a.jpg",
        f"{tmp_path}/b.jpg",
        "s3://bucket/c.jpg",
        "https://x.org/d?id=1",
    ]
    assert [entry.uri for entry in entries] == [f"{tmp_path}/photos/a.jpg", *(entry.image_id for entry in entries[1:])]
    assert source.repeated == 1
    assert entries[0].size_bytes is None
    assert fetch(entries[0]) == b"photos/a.jpg"


def test_uris_of_files_are_read_with_escapes_and_without(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, ["a b.jpg", "100%25.jpg", "100%.jpg"])
    os.rename(archive / "a b.jpg", archive / os.fsdecode(b"a \xff.jpg"))
    paths = [archive / os.fsdecode(b"a \xff.jpg"), archive / "100%25.jpg", archive / "100%.jpg"]
    lines = [paths[0].as_uri(), f"file://{paths[1]}", paths[2].as_uri().replace("file://", "file://localhost")]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    [source] = open_sources([str(tmp_path / "list.txt")])
    # Both `100%25.jpg` and `100%.jpg` are there: the name as it stands is meant.
    expected = [paths[0], paths[1], paths[1]]
    assert [Location.from_uri(entry.uri).path for entry in source.entries()] == [str(path) for path in expected]


def test_named_inputs_keep_equal_ids_apart(tmp_path: Path) -> None:
    make_archive(tmp_path / "a", ["x.jpg"])
    make_archive(tmp_path / "b", ["x.jpg"])
    assert ids(f"first={tmp_path}/a", f"second={tmp_path}/b") == ["first/x.jpg", "second/x.jpg"]
    message = refused(tmp_path, tmp_path / "a", tmp_path / "b")
    assert "'x.jpg'" in message
    assert str(tmp_path / "a") in message
    assert str(tmp_path / "b") in message


def test_a_path_with_an_equals_sign_is_no_name(tmp_path: Path) -> None:
    make_archive(tmp_path, ["year=2024/x.jpg"])
    assert ids(tmp_path / "year=2024") == ["x.jpg"]


def test_inputs_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    make_archive(tmp_path, ["texts/a.txt", "texts/b.tar", "x.docx", "y.tar.gz"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    for given, expected in {
        "missing": "does not exist",
        "empty": "contains no image",
        "texts": "1 .txt",
        "x.docx": "not an image",
        "y.tar.gz": "compressed",
        "empty.txt": "contains no image",
        "none*.jpg": "contains no image",
        "gone/*.jpg": "contains no image",
    }.items():
        assert expected in refused(tmp_path, tmp_path / given), given
    assert "not a readable tar" in refused(tmp_path, tmp_path / "texts")
    with pytest.raises(InputError, match="No INPUT"):
        open_sources([])


def test_one_empty_input_among_full_ones_is_refused(tmp_path: Path) -> None:
    make_archive(tmp_path / "a", photos(3))
    (tmp_path / "b").mkdir()
    assert f"{tmp_path / 'b'} contains no image" in refused(tmp_path, tmp_path / "a", tmp_path / "b")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(bytes((1 << 20) + 1))
    (tmp_path / "list.txt").write_text("x.jpg\n")
    entry = next(open_sources([str(tmp_path)])[0].entries())
    listed = next(open_sources([str(tmp_path / "list.txt")])[0].entries())
    for one in (entry, listed):
        with pytest.raises(ImageError) as caught:
            fetch(one, settings=FetchSettings(max_mb=1))
        assert caught.value.error_class == "too_large"


def test_entries_survive_the_index(tmp_path: Path) -> None:
    make_archive(tmp_path / "dir", photos(3))
    tar = make_tar(tmp_path / "t.tar", [("k.jpg", b"x")])
    (tmp_path / "l.txt").write_text("dir/000.jpg\n")
    sources = open_sources([str(tmp_path / "dir"), str(tar), str(tmp_path / "l.txt")])
    index = write_segment(layout_of(tmp_path / "out"), sources, shard_size=2).commit()
    loaded = Index.load(layout_of(tmp_path / "out"))
    assert loaded == index
    entries: list[Entry] = [entry for source in sources for entry in source.entries()]
    assert [entry for shard in loaded.shards() for entry in loaded.rows(shard)] == entries
