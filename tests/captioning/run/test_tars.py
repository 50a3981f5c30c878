"""Real-world tars: truncated, damaged, joined, with links, long names and wrong headers."""

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from captioning.errors import ImageError, StorageError
from captioning.run.fetch import fetch
from captioning.run.sources import Entry, open_sources
from captioning.run.tars import TarMember, list_tar
from captioning.storage import Location
from tests.captioning.run.runs import make_tar


def members(tar: Path) -> tuple[list[TarMember], list[str]]:
    notes: list[str] = []
    return list(list_tar(Location.parse(str(tar)), notes.append)), notes


def entries(*inputs: Path) -> tuple[list[Entry], list[str]]:
    sources = open_sources([str(text) for text in inputs])
    return [entry for source in sources for entry in source.entries()], [n for source in sources for n in source.notes]


def three(path: Path) -> Path:
    return make_tar(path, [("1.jpg", b"a" * 1000), ("2.jpg", b"b" * 1000), ("3.jpg", b"c" * 1000)])


def test_no_image_is_fetched_from_an_offset_that_has_another_member_now(tmp_path: Path) -> None:
    tar = three(tmp_path / "x.tar")
    before, _ = entries(tar)
    assert [fetch(entry)[:1] for entry in before] == [b"a", b"b", b"c"]
    same_size = [("0.jpg", b"0" * 1000), ("1.jpg", b"a" * 1000), ("2.jpg", b"b" * 1000)]
    for members_now in (same_size, [("1.jpg", b"a" * 999)], []):
        make_tar(tar, members_now)
        with pytest.raises(StorageError, match="rewritten since it was listed.*--refresh changed") as refused:
            fetch(before[1])
        assert refused.value.error_class == "changed"


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_any_name_are_fetched(tmp_path: Path, kind: int) -> None:
    names = ["./a.jpg", "b c.jpg", f"{'d' * 90}/{'e' * 90}.jpg"]
    if kind != tarfile.USTAR_FORMAT:
        names += ["é.jpg", f"{'f' * 300}.jpg", os.fsdecode(b"\xff.jpg")]
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 5, 1.5 if kind == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(b"image"))
    found, _ = entries(tmp_path / "x.tar")
    assert [fetch(entry) for entry in found] == [b"image"] * len(names)


def test_an_intact_tar_has_no_notes(tmp_path: Path) -> None:
    found, notes = members(three(tmp_path / "x.tar"))
    assert [(member.name, member.key, member.size) for member in found] == [
        ("1.jpg", "1", 1000),
        ("2.jpg", "2", 1000),
        ("3.jpg", "3", 1000),
    ]
    assert notes == []
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    assert members(tmp_path / "empty.tar") == ([], [])


def test_samples_with_scattered_members_keep_their_keys(tmp_path: Path) -> None:
    tar = make_tar(
        tmp_path / "x.tar",
        [("a.jpg", b"1"), ("b.JPEG", b"2"), ("a.json", b"{}"), ("b.txt", b""), ("c.seg.png", b"3"), ("a.cls", b"0")],
    )
    found, notes = entries(tar)
    assert [entry.image_id for entry in found] == ["a", "b", "c"]
    assert [fetch(entry) for entry in found] == [b"1", b"2", b"3"]
    assert notes == []


@pytest.mark.parametrize(
    ("cut", "kept", "truncated"),
    [(512, 1, True), (600, 1, True), (1536, 1, False), (1636, 1, False), (1536 + 512, 2, True)],
)
def test_a_truncated_tar_gives_its_intact_members_and_a_note(
    tmp_path: Path, cut: int, kept: int, truncated: bool
) -> None:
    tar = three(tmp_path / "x.tar")
    tar.write_bytes(tar.read_bytes()[:cut])
    found, notes = entries(tar)
    assert [entry.image_id for entry in found] == ["1", "2", "3"][:kept]
    assert len(notes) == 1
    assert "cut short" in notes[0]
    if truncated:
        with pytest.raises(ImageError) as caught:
            fetch(found[-1])
        assert caught.value.error_class == "truncated"


def test_members_behind_a_damaged_header_are_found(tmp_path: Path) -> None:
    tar = three(tmp_path / "x.tar")
    data = bytearray(tar.read_bytes())
    data[1536:2048] = random.Random(0).randbytes(512)
    tar.write_bytes(data)
    found, notes = entries(tar)
    assert [(entry.image_id, fetch(entry)[:1]) for entry in found] == [("1", b"a"), ("3", b"c")]
    assert len(notes) == 1
    assert "damaged" in notes[0]


def test_members_behind_a_wrong_size_are_found(tmp_path: Path) -> None:
    tar = three(tmp_path / "x.tar")
    data = bytearray(tar.read_bytes())
    header = tarfile.TarInfo.frombuf(bytes(data[1536:2048]), "utf-8", "strict")
    header.size = 10**9
    data[1536:2048] = header.tobuf(tarfile.USTAR_FORMAT)
    tar.write_bytes(data)
    found, notes = entries(tar)
    assert [entry.image_id for entry in found] == ["1", "2", "3"]
    assert fetch(found[2]) == b"c" * 1000
    with pytest.raises(ImageError) as caught:
        fetch(found[1])
    assert caught.value.error_class == "truncated"
    assert len(notes) == 1


def test_joined_tars_are_read_to_the_end(tmp_path: Path) -> None:
    first, second = three(tmp_path / "1.tar"), make_tar(tmp_path / "2.tar", [("4.jpg", b"d")])
    joined = tmp_path / "x.tar"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    found, notes = entries(joined)
    assert [entry.image_id for entry in found] == ["1", "2", "3", "4"]
    assert fetch(found[3]) == b"d"
    assert len(notes) == 1
    assert "joined" in notes[0]


def test_links_devices_and_sparse_files_are_noted_and_never_followed(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as file:
        for name, kind, target in (
            ("soft.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.jpg", tarfile.LNKTYPE, "real.jpg"),
            ("device.jpg", tarfile.CHRTYPE, ""),
            ("pipe.jpg", tarfile.FIFOTYPE, ""),
            ("folder.jpg", tarfile.DIRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
        info = tarfile.TarInfo("sparse.jpg")
        info.size = 516
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
        file.addfile(info, io.BytesIO(b"1\n0\n4\n".ljust(512, b"\0") + b"some"))
        info = tarfile.TarInfo("real.jpg")
        info.size = 4
        file.addfile(info, io.BytesIO(b"real"))
    found, notes = entries(tar)
    assert "real" in [entry.image_id for entry in found]
    assert not {"soft", "hard", "device", "pipe", "folder"} & {entry.image_id for entry in found}
    assert len(notes) == 1
    assert "2 links, 2 devices, 1 sparse file" in notes[0]


def test_names_that_look_like_paths_are_never_used_as_paths(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    names = [f"{secret}", "../secret.jpg", "./here.jpg", "a/../../secret.jpg", "x\ny.jpg", "sp ace#?[1].jpg"]
    tar = make_tar(tmp_path / "x.tar", [(name, b"inside") for name in names])
    found, _ = entries(tar)
    assert len(found) == len(names)
    assert [fetch(entry) for entry in found] == [b"inside"] * len(names)
    assert [entry.uri for entry in found] == [f"{tar}#{name}" for name in names]


def test_hidden_members_and_those_without_extension_are_counted(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("._a.jpg", b"2"), ("d/.b.jpg", b"3"), ("README", b"4")])
    [source] = open_sources([str(tar)])
    assert [entry.image_id for entry in source.entries()] == ["a"]
    assert source.skipped.total() == 3


def test_repeated_keys_get_the_name_of_the_tar_and_then_of_the_member(tmp_path: Path) -> None:
    twice = [("k.jpg", b"1"), ("k.jpg", b"2"), ("k.png", b"3"), ("k.png", b"4")]
    make_tar(tmp_path / "a.tar", twice)
    make_tar(tmp_path / "b.TAR", twice[:1])
    found, _ = entries(tmp_path)
    ids = [entry.image_id for entry in found]
    assert ids[:3] == ["k", "a/k", "a/k.png"]
    assert ids[3].startswith("a/k.png#")
    assert ids[4] == "b/k"
    assert [fetch(entry) for entry in found] == [b"1", b"2", b"3", b"4", b"1"]


def test_huge_headers_are_damage(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 5 << 20
    with open(tar, "wb") as file:
        file.write(long_name.tobuf(tarfile.GNU_FORMAT) + b"x" * (5 << 20))
        file.write(three(tmp_path / "y.tar").read_bytes())
    found, notes = entries(tar)
    assert [entry.image_id for entry in found] == ["1", "2", "3"]
    assert len(notes) == 1


def test_an_endless_chain_of_headers_is_damage(tmp_path: Path) -> None:
    link = tarfile.TarInfo("././@LongLink")
    link.type, link.size = tarfile.GNUTYPE_LONGNAME, 5
    block = link.tobuf(tarfile.GNU_FORMAT) + b"name\0" + bytes(507)
    tar = tmp_path / "x.tar"
    tar.write_bytes(three(tmp_path / "y.tar").read_bytes()[: 3 * 1536] + block * 3000)
    found, notes = members(tar)
    assert [member.key for member in found[:3]] == ["1", "2", "3"]
    assert len(notes) == 1


def test_a_compressed_tar_without_its_extension_is_noted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as file:
        file.addfile(tarfile.TarInfo("a.jpg"))
    assert "compressed (gzip)" in entries(tmp_path / "x.tar")[1][0]


def test_no_damage_breaks_the_listing(tmp_path: Path) -> None:
    draw = random.Random(7)
    whole = bytearray(three(tmp_path / "x.tar").read_bytes())
    for number in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 40)):
            data[draw.randrange(3 * 1536)] = draw.randrange(256)
        if number % 3 == 0:
            del data[draw.randrange(len(data)) :]
        (tmp_path / "x.tar").write_bytes(data)
        found, _ = members(tmp_path / "x.tar")
        assert len(found) <= 6
        assert all(0 <= member.offset <= len(data) for member in found)
