from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.errors import InputError
from captioning.run.index import Index
from captioning.run.layout import RunLayout
from captioning.run.verify import verify
from tests.captioning.run.runs import drive, layout_of, make_archive, photos

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    archive = make_archive(tmp_path / "archive", photos(11))
    layout = layout_of(tmp_path / "out")
    drive(layout, [str(archive)])
    return layout


def change(layout: RunLayout, edit: Callable[[pa.Table], pa.Table], part: int = 0) -> None:
    path = layout.part(layout.parts()[part]).local_path
    pq.write_table(edit(pq.read_table(path)), path)


def problems(layout: RunLayout) -> str:
    verdict = verify(layout)
    assert not verdict.ok
    return "\n".join(verdict.problems)


def test_a_whole_run_is_verified_with_its_counts(layout: RunLayout) -> None:
    verdict = verify(layout)
    assert verdict.ok
    assert (verdict.inputs, verdict.rows, verdict.problems) == (11, 11, ())
    assert verdict.errors == {"truncated": 2}


def test_rows_in_another_order_are_fine(layout: RunLayout) -> None:
    change(layout, lambda table: table.take(list(reversed(range(table.num_rows)))))
    assert verify(layout).ok


def test_a_missing_row(layout: RunLayout) -> None:
    change(layout, lambda table: table.slice(1))
    assert "images without a row (1): 000.jpg" in problems(layout)


def test_a_doubled_row(layout: RunLayout) -> None:
    change(layout, lambda table: pa.concat_tables([table, table.slice(2, 1)]))
    assert "images with more than one row (1): 002.jpg" in problems(layout)
    assert verify(layout).rows == 12


def test_a_foreign_row_in_place_of_another(layout: RunLayout) -> None:
    def swap(table: pa.Table) -> pa.Table:
        ids = ["stranger.jpg", *table["image_id"].to_pylist()[1:]]
        return table.set_column(0, "image_id", pa.array(ids))

    change(layout, swap)
    assert "rows of images that do not belong here (1): stranger.jpg" in problems(layout)
    assert "without a row (1): 000.jpg" in problems(layout)


def test_a_row_in_another_part_too(layout: RunLayout) -> None:
    extra = pq.read_table(layout.part(layout.parts()[0]).local_path).slice(0, 1)
    change(layout, lambda table: pa.concat_tables([table, extra]), part=1)
    assert "do not belong here (1): 000.jpg" in problems(layout)


def test_a_null_id(layout: RunLayout) -> None:
    def blank(table: pa.Table) -> pa.Table:
        ids = [None, *table["image_id"].to_pylist()[1:]]
        return table.set_column(0, "image_id", pa.array(ids, pa.string()))

    change(layout, blank)
    assert "without a row (1): 000.jpg" in problems(layout)


def test_a_missing_part(layout: RunLayout) -> None:
    layout.part(layout.parts()[1]).delete()
    assert "part-00000004-00000005.parquet does not exist: 3 images" in problems(layout)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_part(layout: RunLayout, keep: int) -> None:
    file = layout.part(layout.parts()[0])
    file.write_bytes(file.read_bytes()[:keep])
    assert "part-00000000-00000003.parquet is damaged" in problems(layout)


def test_bytes_changed_inside_a_part(layout: RunLayout) -> None:
    file = layout.part(layout.parts()[0])
    data = bytearray(file.read_bytes())
    data[4:200] = b"\xff" * 196
    file.write_bytes(bytes(data))
    assert "is damaged" in problems(layout)


def test_other_columns(layout: RunLayout) -> None:
    change(layout, lambda table: table.drop_columns(["model"]))
    assert "does not have the columns" in problems(layout)


@pytest.mark.parametrize("name", ["part-00000000-00000005.parquet", "part-x.parquet", "copy.parquet"])
def test_files_that_readers_would_take_for_parts(layout: RunLayout, name: str) -> None:
    (layout.root / name).write_bytes(layout.part(layout.parts()[0]).read_bytes())
    assert f"{name} is not part of this table" in problems(layout)


@pytest.mark.parametrize(("column", "value"), [("caption", None), ("status", "done"), ("status", "error")])
def test_a_row_that_is_neither_a_caption_nor_an_error(layout: RunLayout, column: str, value: str | None) -> None:
    def edit(table: pa.Table) -> pa.Table:
        values = [value, *table[column].to_pylist()[1:]]
        return table.set_column(table.schema.get_field_index(column), column, pa.array(values, pa.string()))

    change(layout, edit)
    assert "neither a caption nor an error (1): 000.jpg" in problems(layout)


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run"):
        verify(layout_of(tmp_path / "nothing"))


def test_a_run_stopped_before_its_index(layout: RunLayout) -> None:
    (layout.index_dir / "segment-0000.json").delete()
    assert "no index yet" in problems(layout)


def test_an_id_that_the_index_has_twice(layout: RunLayout) -> None:
    """Which no listing gives; a file of the index was put in place of another."""
    first, second = (layout.index_dir / name for name in Index.load(layout).segments[0].files)
    twice = pq.read_table(first.local_path).slice(1, 1)
    table = pq.read_table(second.local_path)
    pq.write_table(pa.concat_tables([twice, table.slice(1)]), second.local_path, row_group_size=2)
    assert "index: images listed more than once (1): 001.jpg" in problems(layout)
