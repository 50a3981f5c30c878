"""A run on an object store: a local S3 server (moto)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.errors import StorageError, UsageError
from captioning.retries import RetryPolicy
from captioning.run.events import append_event, read_events
from captioning.run.fetch import fetch
from captioning.run.index import Index
from captioning.run.layout import RunLayout
from captioning.run.sources import open_sources
from captioning.run.staging import fold, write_staged
from captioning.run.verify import verify
from captioning.storage import Location, StorageSettings
from tests.captioning.run.runs import drive, make_tar, photos, shard_rows, table
from tests.s3 import s3_server

pytestmark = [pytest.mark.usefixtures("small_parts")]


@pytest.fixture(scope="module")
def storage() -> Iterator[StorageSettings]:
    with s3_server("photos") as settings:
        yield settings


def test_files_on_s3(storage: StorageSettings) -> None:
    root = Location.parse("s3://photos/files", storage)
    assert not root.exists()
    assert root.names() == []
    (root / "a" / "b.txt").write_bytes(b"hello")
    assert root.is_dir()
    assert root.names() == ["a"]
    # Listings are never stale, whoever wrote.
    (root / "c+d e%20é.txt").write_bytes(b"other")
    assert root.names() == ["a", "c+d e%20é.txt"]
    assert [(file.path, file.size) for file in root.walk()] == [("a/b.txt", 5), ("c+d e%20é.txt", 5)]
    assert (root / "a" / "b.txt").read_range(1, 3) == b"ell"
    before = (root / "a" / "b.txt").info()
    (root / "a" / "b.txt").write_bytes(b"HELLO")
    after = (root / "a" / "b.txt").info()
    assert before is not None
    assert after is not None
    assert before.version != after.version
    assert (root / "new").create_bytes(b"1")
    assert not (root / "new").create_bytes(b"2")
    assert (root / "new").read_bytes() == b"1"
    (root / "new").delete()
    assert not (root / "new").exists()
    with (root / "a" / "b.txt").open_read() as file:
        file.seek(1)
        assert file.read() == b"ELLO"
    root.check_writable()
    assert [file.path for file in root.walk()] == ["a/b.txt", "c+d e%20é.txt"]


def test_missing_objects(storage: StorageSettings) -> None:
    for uri in ("s3://photos/none.jpg", "s3://no-such-bucket/x.jpg"):
        with pytest.raises(StorageError, match=uri.rpartition("/")[2]) as caught:
            Location.parse(uri, storage).read_bytes()
        assert caught.value.error_class == "missing"
    with pytest.raises(StorageError) as caught:
        Location.parse("s3://no-such-bucket/out", storage).check_writable()
    assert caught.value.error_class == "missing"


def test_a_run_with_its_archive_and_output_on_s3(storage: StorageSettings) -> None:
    archive = Location.parse("s3://photos/archive", storage)
    for name in photos(9, "p/"):
        (archive / name).write_bytes(name.encode())
    layout = RunLayout(Location.parse("s3://photos/out", storage))
    index = drive(layout, ["s3://photos/archive/"], storage=storage)
    assert verify(layout).ok
    assert [row["image_id"] for row in table(layout)] == photos(9, "p/")
    entry = index.rows(index.shard(4))[0]
    assert entry.uri == "s3://photos/archive/p/008.jpg"
    assert fetch(entry, storage) == b"p/008.jpg"
    (archive / "q.jpg").write_bytes(b"new")
    index = drive(layout, ["s3://photos/archive"], storage=storage)
    assert [part.name for part in layout.parts()][-1] == "part-00000005-00000005.parquet"
    late = index.shard(0)
    write_staged(layout, late, shard_rows(index, late))
    fold(layout, Index.load(layout))
    assert layout.staging_dir.names() == []
    assert verify(layout).ok
    append_event(layout, "one")
    append_event(layout, "two")
    assert [event["event"] for event in read_events(layout)] == ["one", "two"]
    globbed = open_sources(["s3://photos/archive/p/00{1,3}.jpg"], storage)[0]
    assert [entry.image_id for entry in globbed.entries()] == ["001.jpg", "003.jpg"]


def test_tables_and_tars_on_s3(storage: StorageSettings, tmp_path: Path) -> None:
    """A folder of Parquet files, a tar and an Arrow file of URIs, none of which is copied here first."""
    root = Location.parse("s3://photos/containers", storage)
    images = [b"image %d" % number for number in range(40)]
    for number in range(2):
        pq.write_table(pa.table({"jpg": images[20 * number :][:20]}), tmp_path / "x.parquet", row_group_size=6)
        (root / "tables" / f"{number}.parquet").write_bytes((tmp_path / "x.parquet").read_bytes())
    make_tar(tmp_path / "x.tar", [(f"{number}.jpg", data) for number, data in enumerate(images[:5])])
    (root / "x#y.tar").write_bytes((tmp_path / "x.tar").read_bytes())
    (root / "near" / "a.jpg").write_bytes(b"near")
    uris = pa.table({"uri": ["near/a.jpg", f"{root.uri}/near/a.jpg", "s3://photos/containers/none.jpg"]})
    with pa.OSFile(str(tmp_path / "u.arrow"), "wb") as file, pa.ipc.new_stream(file, uris.schema) as writer:
        writer.write_table(uris)
    (root / "u.arrow").write_bytes((tmp_path / "u.arrow").read_bytes())
    sources = open_sources([f"{root.uri}/tables", f"{root.uri}/x#y.tar", f"{root.uri}/u.arrow"], storage)
    tables, tar, listed = (list(source.entries()) for source in sources)
    assert [entry.image_id for entry in tables[19:21]] == ["0.parquet#19", "1.parquet#0"]
    assert [fetch(entry, storage) for entry in tables] == images
    assert [fetch(entry, storage) for entry in tar] == images[:5]
    assert [fetch(entry, storage) for entry in listed[:2]] == [b"near", b"near"]
    with pytest.raises(StorageError) as caught:
        fetch(listed[2], storage)
    assert caught.value.error_class == "missing"
    (root / "tables" / "1.parquet").delete()
    with pytest.raises(StorageError) as caught:
        fetch(dataclasses.replace(tables[-1], version="of a file that nobody holds open"), storage)
    assert caught.value.error_class == "missing"


def test_an_object_is_read_by_one_request(storage: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request would cost as much again, and its response would not say why it failed."""
    photo = Location.parse("s3://photos/once/a.jpg", storage)
    photo.write_bytes(b"image")
    files = photo._files()
    asked: list[str] = []
    call = files._fs._call_s3

    async def counted(method: str, *args: object, **kwargs: object) -> object:
        asked.append(method)
        return await call(method, *args, **kwargs)

    monkeypatch.setattr(files._fs, "_call_s3", counted)
    assert photo.read_bytes() == photo.read_bytes(retry=RetryPolicy(attempts=1, seconds=30.0)) == b"image"
    assert photo.read_range(1, 2) == b"ma"
    assert asked == ["get_object"] * 3


def test_a_key_may_be_a_file_and_a_folder(storage: StorageSettings) -> None:
    root = Location.parse("s3://photos/both", storage)
    for name, data in (("mark", b""), ("mark/a.jpg", b"a"), ("full.jpg", b"full"), ("full.jpg/b.jpg", b"b")):
        (root / name).write_bytes(data)
    for given, expected in {
        "mark": ["a.jpg"],
        "mark/": ["a.jpg"],
        "mark/*": ["a.jpg"],
        "full.jpg": ["full.jpg"],
        "full.jpg/": ["b.jpg"],
        "full.jpg/*": ["b.jpg"],
    }.items():
        [source] = open_sources([f"{root.uri}/{given}"], storage)
        assert [entry.image_id for entry in source.entries()] == expected, given
    assert not (root / "mark" / "a.jpg").is_dir()


@pytest.mark.parametrize(
    ("uri", "says"),
    [("s3://", "names no bucket"), ("s3:///", "names no bucket"), ("s3://KEY:hush@b/x", "contains keys")],
)
def test_a_uri_that_names_no_bucket_or_keys_is_refused(uri: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        Location.parse(uri)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("where", ["setting", "environment"])
def test_an_endpoint_that_is_no_url_raises(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "setting":
        with pytest.raises(ValueError, match="must be a URL such as"):
            StorageSettings(endpoint="localhost:9000")
        return
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(StorageError, match="Invalid endpoint"):
        Location.parse("s3://photos/x", StorageSettings(anonymous=True)).read_bytes()
