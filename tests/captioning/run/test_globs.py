"""Patterns: what they match, and which folders are listed for them."""

from pathlib import Path

import pytest

from captioning.errors import InputError
from captioning.run.globs import Glob, _folder_filter, _Pattern
from captioning.run.sources import open_sources
from captioning.storage import Location
from tests.captioning.run.runs import make_archive


def matching(pattern: str, *texts: str) -> list[str]:
    return [text for text in texts if _Pattern(pattern).matches(text)]


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("{000..128}.tar", ["000.tar", "007.tar", "128.tar"], ["7.tar", "129.tar", "0007.tar", "x.tar", ".tar"]),
        ("{0..12}", ["0", "9", "10", "12"], ["00", "01", "13", "-1"]),
        ("{8..11}", ["8", "11"], ["08", "12"]),
        ("{08..11}", ["08", "11"], ["8", "12"]),
        ("{3..1}", ["1", "2", "3"], ["0", "4"]),
        ("{0..10..5}", ["0", "5", "10"], ["1", "15"]),
        ("{10..1..4}", ["10", "6", "2"], ["1", "3", "9"]),
        ("{0..999999999999}", ["123456789012"[:12]], ["1234567890123", "٣"]),
        ("{a..c}x{A..B}", ["axA", "cxB"], ["dxA", "axC"]),
        ("{train,val}-{0..1}.tar", ["train-0.tar", "val-1.tar"], ["test-0.tar", "val-2.tar"]),
        ("{{0..1},x}", ["0", "1", "x"], ["2", ""]),
        ("a{,b}.jpg", ["a.jpg", "ab.jpg"], ["abb.jpg"]),
        ("[[]x[]].jpg", ["[x].jpg"], ["x.jpg"]),
        ("a.b", ["a.b"], ["axb"]),
        ("*\n*", ["a\nb"], ["ab"]),
    ],
)
def test_what_a_pattern_matches(pattern: str, yes: list[str], no: list[str]) -> None:
    assert matching(pattern, *yes, *no) == yes


@pytest.mark.parametrize(
    ("pattern", "entered", "not_entered"),
    [
        ("20{23..24}/*/x.jpg", ["2023", "2024", "2024/01"], ["2022", "other", "2022/01"]),
        ("a*/**/b/*.jpg", ["a", "ab", "a/x", "a/x/y/z"], ["b"]),
        ("**/*.jpg", ["a", "a/b"], []),
        ("{a/b,c}/*.jpg", ["a", "a/b", "c", "d"], []),
        ("*.jpg", ["anything"], []),
    ],
)
def test_which_folders_are_listed(pattern: str, entered: list[str], not_entered: list[str]) -> None:
    enter = _folder_filter(pattern)
    assert [folder for folder in [*entered, *not_entered] if enter(folder)] == entered


def test_folders_that_cannot_match_are_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_archive(tmp_path, ["2023/01/a.jpg", "2024/01/b.jpg", "2024/02/c.jpg"])
    read: list[str] = []
    import os

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(str(path)) or scandir(path))
    glob = Glob(Location.parse(str(tmp_path)), "2024/0{2..9}/*.jpg")
    assert [file.path for file in glob.files()] == ["2024/02/c.jpg"]
    assert [Path(path).relative_to(tmp_path).as_posix() for path in read] == [".", "2024", "2024/02"]


def test_an_invalid_pattern_raises() -> None:
    with pytest.raises(InputError, match=r"\[z-a\].* is not valid"):
        _Pattern("[z-a]*.jpg")


def test_a_pattern_as_a_buckets_name_raises() -> None:
    with pytest.raises(InputError, match="a bucket's name cannot be a pattern"):
        open_sources(["memory://buck*/photos"])
