"""Unusual file names: each image gets a row under its own id, and its uri leads back to the file."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from captioning.errors import InputError
from captioning.remote_listing import S3Pages
from captioning.run.fetch import fetch
from captioning.run.index import Index, write_segment
from captioning.run.sources import Entry, open_sources
from captioning.storage import Location, StorageSettings, unescape_name
from tests.captioning.run.runs import drive, layout_of, make_archive, table
from tests.s3 import s3_server

NAMES = [
    "plain.jpg",
    "with space .jpg",
    " leading.jpg",
    "hash#tag.jpg",
    "what?.jpg",
    "star*.jpg",
    "[2024] x.jpg",
    "{a,b}.jpg",
    "{1..3}.jpg",
    "new\nline.jpg",
    "carriage\rreturn\ttab.jpg",
    "two.dots.jpg",
    "..three.jpg",
    "%41%20percent.jpg",
    "plus+and&amp;.jpg",
    "semi;colon:and|pipe.jpg",
    "quote'\"`$HOME.jpg",
    "back\\slash.jpg",
    r"back\xe9slash.jpg",
    "-o.jpg",
    "--set a=b.jpg",
    "NAME=value.jpg",
    "~tilde.jpg",
    "é ü 日本 🐈.jpg",
    "e\u0301 combined.jpg",
    "<script>alert(1)</script>.jpg",
    "dir with space/in#side?/x[1].jpg",
    "a.tar#inside/x.jpg",
    "=.jpg",
    "UPPER.JPG",
]
BYTES = [b"caf\xe9.jpg", b"\xff\xfe/\x80.jpg", b"mixed \xc3\xa9 \xe9.jpg"]
#: The server of these tests routes no key with a new line in it.
KEYS = [name for name in NAMES if "\n" not in name]


def content(name: str) -> bytes:
    return b"bytes of " + os.fsencode(name)


def check(entries: list[Entry], storage: StorageSettings | None = None) -> None:
    """Every entry's id names its file, and its uri alone leads to its bytes."""
    assert len({entry.image_id for entry in entries}) == len(entries)
    for entry in entries:
        entry.image_id.encode("utf-8")
        wanted = content(unescape_name(entry.image_id))
        assert fetch(entry, storage) == wanted
        assert Location.from_uri(entry.uri, storage).read_bytes() == wanted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "a folder#1 [x]?" / "year=2024"
    for name in [*NAMES, *map(os.fsdecode, BYTES)]:
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(name))
        except OSError:
            pytest.skip("this file system does not take such names")
    return root


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    sources = open_sources([str(folder)])
    entries = list(sources[0].entries())
    assert len(entries) == len(NAMES) + len(BYTES)
    check(entries)
    index = write_segment(layout_of(tmp_path / "out"), sources, shard_size=4).commit()
    check([entry for shard in Index.load(index.layout).shards() for entry in index.rows(shard)])


def test_rows_of_the_table_have_the_ids_and_lead_back(folder: Path, tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "out")
    drive(layout, [str(folder)])
    rows = table(layout)
    assert len(rows) == len(NAMES) + len(BYTES)
    for row in rows:
        assert Location.from_uri(row["uri"]).read_bytes() == content(unescape_name(row["image_id"]))


def test_each_as_an_input_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in [*NAMES, *map(os.fsdecode, BYTES)]:
        [source] = open_sources([str(folder / name)])
        [entry] = source.entries()
        assert fetch(entry) == content(name)
        # Relative to where one is; only what begins like a name or a home has to be written otherwise.
        [source] = open_sources(["./" + name])
        assert [fetch(entry) for entry in source.entries()] == [content(name)]
    assert [e.image_id for s in open_sources(["NAME=value.jpg"]) for e in s.entries()] == ["NAME=value.jpg"]


def test_a_glob_through_folders_with_equals_signs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    found = [entry for source in open_sources(["year=2024/*.jpg"]) for entry in source.entries()]
    assert "plain.jpg" in [entry.image_id for entry in found]
    named = [e.image_id for s in open_sources([f"in={folder.parent.parent}/*/year=*/plain.jpg"]) for e in s.entries()]
    assert named == ["in/a folder#1 [x]?/year=2024/plain.jpg"]
    monkeypatch.chdir(folder)
    assert [e.image_id for s in open_sources(["NAME=*.jpg"]) for e in s.entries()] == ["NAME=value.jpg"]
    [entry] = [entry for source in open_sources(["x=pla*.jpg"]) for entry in source.entries()]
    assert entry.image_id == "x/plain.jpg"


def test_a_list_of_them(folder: Path, tmp_path: Path) -> None:
    names = [name for name in NAMES if not set("\n\r") & set(name) and not name.startswith((" ", "~"))]
    raw = [os.fsencode(folder / name) for name in names] + [os.fsencode(folder) + b"/" + name for name in BYTES]
    (tmp_path / "list.txt").write_bytes(b"\n".join(raw))
    entries = list(open_sources([str(tmp_path / "list.txt")])[0].entries())
    assert [fetch(entry) for entry in entries] == [content(os.path.relpath(os.fsdecode(n), folder)) for n in raw]
    (folder / "list.txt").write_bytes(b"\n".join(os.fsencode(name) for name in names))
    entries = list(open_sources([str(folder / "list.txt")])[0].entries())
    assert [fetch(entry) for entry in entries] == list(map(content, names))


def test_in_a_tar(tmp_path: Path) -> None:
    names = [name for name in [*NAMES, *map(os.fsdecode, BYTES)] if not name.rpartition("/")[2].startswith(".")]
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content(name))
            tar.addfile(info, io.BytesIO(content(name)))
    entries = list(open_sources([str(tmp_path / "x.tar")])[0].entries())
    assert [fetch(entry) for entry in entries] == list(map(content, names))
    assert len({entry.image_id for entry in entries}) == len(names)


def test_names_shared_by_two_inputs_are_refused(tmp_path: Path) -> None:
    for side in "ab":
        make_archive(tmp_path / side, ["new\nline#?.jpg"])
    with pytest.raises(InputError, match="in both INPUTs"):
        write_segment(layout_of(tmp_path / "out"), open_sources([str(tmp_path / "a"), str(tmp_path / "b")]))
    both = open_sources([f"one={tmp_path / 'a'}", f"two={tmp_path / 'b'}"])
    assert [e.image_id for s in both for e in s.entries()] == ["one/new\nline#?.jpg", "two/new\nline#?.jpg"]


@pytest.fixture(scope="module")
def bucket() -> Iterator[StorageSettings]:
    with s3_server("names") as settings:
        client = boto3.client("s3", endpoint_url=settings.endpoint)
        for name in [*KEYS, "a//empty.jpg", "a/../up.jpg", "/slash.jpg"]:
            client.put_object(Bucket="names", Key=f"photos/{name}", Body=content(name))
        client.put_object(Bucket="names", Key="photos/folder.jpg/", Body=b"")
        for number in range(65):
            client.put_object(Bucket="names", Key=f"many/{number // 40}/{number % 40:03d}.jpg", Body=b"x")
        yield settings


def test_keys_of_a_bucket(bucket: StorageSettings, tmp_path: Path) -> None:
    sources = open_sources(["s3://names/photos/"], bucket)
    entries = list(sources[0].entries())
    assert len(entries) == len(KEYS) + 3
    check(entries, bucket)
    assert entries[0].version
    index = write_segment(layout_of(tmp_path / "out"), sources, shard_size=8).commit()
    check([entry for shard in index.shards() for entry in index.rows(shard)], bucket)


def test_keys_of_a_bucket_one_by_one_and_by_pattern(bucket: StorageSettings) -> None:
    for name in KEYS:
        [source] = open_sources([f"s3://names/photos/{name}"], bucket)
        [entry] = source.entries()
        assert fetch(entry, bucket) == content(name)
    for pattern, expected in (
        ("s3://names/many/{0..9}/00{0..2}.jpg", [f"{side}/00{number}.jpg" for side in "01" for number in "012"]),
        ("s3://names/many/1/*9.jpg", [f"{number:03d}.jpg" for number in range(9, 20, 10)]),
        ("x=s3://names/photos/dir*/**", ["x/dir with space/in#side?/x[1].jpg"]),
    ):
        found = [entry.image_id for source in open_sources([pattern], bucket) for entry in source.entries()]
        assert found[: len(expected)] == expected


def test_a_prefix_of_more_than_a_page(bucket: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(S3Pages, "page_size", 7)
    entries = [entry for source in open_sources(["s3://names/many"], bucket) for entry in source.entries()]
    assert [entry.image_id for entry in entries] == [f"{number // 40}/{number % 40:03d}.jpg" for number in range(65)]
