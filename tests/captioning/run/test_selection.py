from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from captioning.errors import InputError, UsageError
from captioning.run import selection as selection_module
from captioning.run.growth import grow
from captioning.run.index import Index, write_segment
from captioning.run.segment import INDEX_SCHEMA, entries_to_table, index_schema
from captioning.run.selection import EVERYTHING, Selection
from captioning.run.sources import Entry, open_sources
from captioning.run.where import Condition
from tests.captioning.run.runs import drive, layout_of, make_archive, photos

ENTRIES = [
    Entry("a.jpg", "/p/a.jpg", 10, "1"),
    Entry("b.png", "/p/b.png", 200, "2"),
    Entry("c.JPG", "/p/c.JPG", None, "3"),
    Entry("it's", "/p/x.tar#it's", 4000, "4", "/p/x.tar", 512),
]


def holds(text: str) -> list[str]:
    found: list[str] = Condition.parse(text, INDEX_SCHEMA).filter(entries_to_table(ENTRIES))["image_id"].to_pylist()
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("size_bytes > 100", ["b.png", "it's"]),
        ("size_bytes<=1_0.5", ["a.jpg"]),
        ("100 < size_bytes AND size_bytes != 4000", ["b.png"]),
        ("uri like '%.jpg'", ["a.jpg"]),
        ("uri ilike '%.jpg'", ["a.jpg", "c.JPG"]),
        ("uri not like '/p/_.___'", ["it's"]),
        ("size_bytes is null or tar is not null", ["c.JPG", "it's"]),
        ("not (size_bytes = 10 or size_bytes == 200)", ["it's"]),
        ("not size_bytes = 10 and size_bytes <> 200", ["it's"]),
        ("image_id in ('a.jpg', \"b.png\")", ["a.jpg", "b.png"]),
        ("size_bytes not in (10, 200)", ["it's"]),
        ("size_bytes between 10 and 200", ["a.jpg", "b.png"]),
        ("size_bytes not between 10 and 200", ["it's"]),
        ("image_id = 'it''s'", ["it's"]),
        ("size_bytes = 10 or size_bytes = 200 and image_id = 'x'", ["a.jpg"]),
        ('  "offset" = version  ', []),
        ("offset = 512", ["it's"]),
        ("-1 < size_bytes and size_bytes < 1e3", ["a.jpg", "b.png"]),
    ],
)
def test_rows_that_satisfy_a_condition(text: str, expected: list[str]) -> None:
    assert holds(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "found the end"),
        ("size_bytes >", "expected a column, a number or text in quotes, found the end"),
        ("size_bytes > 10 size_bytes", "found 'size_bytes'"),
        ("(size_bytes > 10", r"expected '\)'"),
        ("size > 10", "an unknown column 'size'.*size_bytes"),
        ("size_bytes > 'big'", "cannot be evaluated"),
        ("size_bytes like '%1'", "cannot be evaluated"),
        ("uri like 5", "a pattern in quotes"),
        ("uri", "a comparison such as"),
        ("uri = 'x", 'unexpected text at "\'x"'),
        ("__import__('os').system('x')", "__import__"),
        ("uri = 'x'; drop", "unexpected text at '; drop'"),
        ("(" * 5000, "too many nested parentheses"),
        ("not " * 50_000, "too many nested parentheses"),
    ],
)
def test_an_invalid_condition_raises(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Condition.parse(text, INDEX_SCHEMA)
    with pytest.raises(UsageError, match=r"^--where"):
        Selection(where=text).check(pa.schema([]))


def test_conditions_on_kept_columns() -> None:
    kept = pa.schema([pa.field("licence", pa.string()), pa.field("version", pa.int64())])
    values = [(pa.array(["cc0"]), pa.array([1])), (None, pa.array([2])), (pa.array(["by"]), None), ()]
    entries = [replace(entry, kept=value) for entry, value in zip(ENTRIES, values, strict=True)]
    selection = Selection(where="licence in ('cc0', 'by') and size_bytes is not null")
    selection.check(kept)
    [found] = selection.apply([entries_to_table(entries, kept)])
    assert found["image_id"].to_pylist() == ["a.jpg"]
    assert found.schema == index_schema(kept)
    # The archive's own column of a name that the index has too.
    assert [table.num_rows for table in Selection(where="version = 2").apply([entries_to_table(entries, kept)])] == [1]
    with pytest.raises(UsageError, match=r"an unknown column 'licence'.*version \(string\)"):
        selection.check(pa.schema([]))


def tables(count: int, size: int = 7) -> list[pa.Table]:
    entries = [Entry(f"{number:05d}.jpg", f"/p/{number}", number) for number in range(count)]
    return [entries_to_table(entries[at : at + size]) for at in range(0, count, size)]


def taken(selection: Selection, count: int, size: int = 7) -> list[int]:
    return [number for table in selection.apply(tables(count, size)) for number in table["size_bytes"].to_pylist()]


def test_a_limit_takes_the_first_images_and_lists_no_more() -> None:
    assert taken(Selection(limit=10), 100) == list(range(10))
    assert taken(Selection(limit=10), 4) == list(range(4))
    assert taken(Selection(limit=10**20), 4) == list(range(4))
    assert taken(Selection(where=f"size_bytes < {10**20}"), 4) == list(range(4))
    listing = iter(tables(100))
    assert sum(table.num_rows for table in Selection(limit=7).apply(listing)) == 7
    assert next(listing)["size_bytes"][0].as_py() == 7


def test_a_sample_is_reproducible_and_spread_over_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    found = taken(Selection(sample=200), 2000)
    assert len(set(found)) == 200
    assert found == sorted(found)
    assert all(10 <= sum(low <= number < low + 500 for number in found) <= 90 for low in range(0, 2000, 500))
    monkeypatch.setattr(selection_module, "_SLACK", 10)
    assert taken(Selection(sample=200), 2000, size=13) == found
    assert taken(Selection(sample=200, seed=1), 2000) != found
    assert taken(Selection(sample=50), 20) == list(range(20))


def test_a_condition_is_applied_before_a_limit_or_sample() -> None:
    assert taken(Selection(limit=3, where="size_bytes >= 20"), 100) == [20, 21, 22]
    assert set(taken(Selection(sample=5, where="size_bytes >= 90"), 100)) <= set(range(90, 100))


def test_a_selection_is_recorded_as_given() -> None:
    assert EVERYTHING.to_dict() == {}
    assert not EVERYTHING
    for selection in (EVERYTHING, Selection(limit=5), Selection(sample=5, where="size_bytes > 1", seed=3)):
        assert Selection(**selection.to_dict()) == selection
    assert str(Selection(sample=5, where="size_bytes > 1")) == "--sample 5 --where size_bytes > 1"


@pytest.mark.parametrize("given", [{"limit": 0}, {"sample": -1}, {"limit": 1, "sample": 1}])
def test_invalid_limits_and_samples_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"--(limit|sample)"):
        Selection(**given)


def index_of(tmp_path: Path, selection: Selection) -> Index:
    sources = open_sources([str(tmp_path / "a")])
    return write_segment(layout_of(tmp_path / "out"), sources, shard_size=2, selection=selection).commit()


def ids(index: Index) -> list[str]:
    return [entry.image_id for batch in index.batches() for entry in batch]


def test_the_index_has_the_selected_images_and_grows_by_those_that_satisfy_the_condition(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", [*photos(6), "x.png"])
    selection = Selection(where="uri like '%.jpg'")
    index = index_of(tmp_path, selection)
    assert ids(index) == photos(6)
    make_archive(archive, ["0.jpg", "y.png"])
    growth = grow(index, open_sources([str(archive)]), shard_size=2, selection=selection)
    assert (growth.new, growth.changed, growth.vanished) == (1, 0, 0)
    assert growth.pending is not None
    assert ids(growth.pending.commit()) == [*photos(6), "0.jpg"]


def test_a_limit_or_sample_does_not_grow_but_detects_changes(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a", photos(6))
    selection = Selection(limit=2)
    index = index_of(tmp_path, selection)
    make_archive(archive, ["0.jpg"])
    (archive / "001.jpg").write_bytes(b"another")
    growth = grow(index, open_sources([str(archive)]), shard_size=2, selection=selection)
    assert (growth.pending, growth.new, growth.changed, growth.vanished) == (None, 0, 1, 0)


def test_an_empty_selection_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    make_archive(tmp_path / "a", photos(3))
    with pytest.raises(InputError, match=r"none is selected \(--where size_bytes > 5000\)"):
        index_of(tmp_path, Selection(where="size_bytes > 5000"))
    assert layout_of(tmp_path / "out").index_dir.names() == []


def test_a_selected_run_is_driven_to_its_end(tmp_path: Path) -> None:
    make_archive(tmp_path / "a", photos(9))
    index_of(tmp_path, Selection(sample=4))
    assert Index.load(layout_of(tmp_path / "out")).rows_total == 4
    assert drive(layout_of(tmp_path / "whole"), [str(tmp_path / "a")]).rows_total == 9
