import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.errors import StorageError
from captioning.run import folding as folding_module
from captioning.run.folding import Folding
from captioning.run.index import Index, write_segment
from captioning.run.layout import RunLayout
from captioning.run.sources import open_sources
from captioning.run.staging import fold_range, pending_shards, write_staged
from captioning.run.table import part_batches, read_part
from captioning.run.verify import verify
from tests.captioning.run.runs import caption, drive, layout_of, make_archive, photos, shard_rows

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    archive = make_archive(tmp_path / "archive", photos(21))
    return write_segment(layout_of(tmp_path / "out"), open_sources([str(archive)]), shard_size=2).commit()


def stage(index: Index, *numbers: int) -> None:
    for number in numbers:
        write_staged(index.layout, index.shard(number), shard_rows(index, index.shard(number)))


def finish(index: Index, numbers: Iterable[int]) -> None:
    with Folding(index, range(4)) as folding:
        for number in numbers:
            folding.finished(number)


def names(layout: RunLayout) -> list[str]:
    return [part.name for part in layout.parts()]


def test_a_part_exists_once_its_last_shard_is_finished(index: Index) -> None:
    layout = index.layout
    stage(index, 0, 5)
    pending = [shard.number for shard in pending_shards(layout, index)]
    with Folding(index, pending) as folding:
        for number in (4, 7, 1, 10, 2, 9, 6, 3):
            stage(index, number)
            folding.finished(number)
    assert names(layout) == ["part-00000000-00000003.parquet", "part-00000004-00000007.parquet"]
    assert layout.staged_numbers() == [9, 10]
    assert [shard.number for shard in pending_shards(layout, index)] == [8]
    caption(layout, index)
    assert len(names(layout)) == 3


def test_background_folding_lists_nothing(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = range(4)
    with monkeypatch.context() as patch:
        for name in ("staged_numbers", "parts"):
            patch.setattr(RunLayout, name, lambda self: pytest.fail("listed"))
        with Folding(index, numbers) as folding:
            for number in numbers:
                stage(index, number)
                folding.finished(number)
    assert names(index.layout) == ["part-00000000-00000003.parquet"]


def test_the_shard_of_a_damaged_staged_file_is_pending_again(index: Index) -> None:
    layout = index.layout
    stage(index, *range(4))
    layout.staged(2).write_bytes(b"PAR1")
    part = index.range_of(2)
    assert fold_range(layout, index, part).damaged == (2,)
    assert names(layout) == []
    assert layout.staged_numbers() == [0, 1, 3]
    assert fold_range(layout, index, part).folded == ()
    stage(index, 2)
    assert fold_range(layout, index, part).folded == (part,)
    stage(index, 2)
    assert fold_range(layout, index, part).folded == ()


def test_a_fold_that_fails_stops_the_run(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("no_space", "The disk is full.")

    monkeypatch.setattr(folding_module, "fold_range", full)
    with pytest.raises(StorageError, match="full"):
        finish(index, range(4))


def test_an_interrupt_is_not_masked_by_a_fold(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()

    def fails_later(*_: object) -> None:
        stopped.wait()
        raise StorageError("no_space", "The disk is full.")

    monkeypatch.setattr(folding_module, "fold_range", fails_later)

    def interrupted() -> Iterator[int]:
        yield from range(4)
        stopped.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(index, interrupted())


def test_the_range_of_a_shard_is_one_of_the_ranges(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "archive", photos(11, "m/"))
    drive(layout_of(tmp_path / "out"), [str(archive)])
    make_archive(archive, photos(7, "n/"))
    index = drive(layout_of(tmp_path / "out"), [str(archive)])
    assert len(index.segments) == 2
    assert [index.range_of(shard.number) for shard in index.shards()] == [
        part for part in index.ranges() for _ in part.numbers
    ]


def test_a_part_is_read_in_batches(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioning.run.table.GROUP_ROWS", 3)
    caption(index.layout, index)
    part = index.ranges()[0]
    batches = list(part_batches(index.layout, part, ["image_id", "caption"]))
    assert [batch.num_rows for batch in batches] == [3, 3, 2]
    assert batches[0].schema.names == ["image_id", "caption"]
    assert read_part(index.layout, part).num_rows == 8


def test_a_flipped_bit_in_a_part_is_detected(tmp_path: Path) -> None:
    layout = drive(layout_of(tmp_path / "out"), [str(make_archive(tmp_path / "archive", photos(5)))]).layout
    assert verify(layout).ok
    file = layout.part(layout.parts()[0])
    whole = file.read_bytes()
    chunk = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(0).column(2)
    at = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 3
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert any("is damaged" in problem for problem in verify(layout).problems)
