"""A shard's input and output, on a machine that sees OUTPUT and on one that does not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from captioning.errors import StorageError
from captioning.run.index import Index, write_segment
from captioning.run.layout import RunLayout
from captioning.run.redo import RedoShardIO, make_plan
from captioning.run.redo_selection import failed_images
from captioning.run.shard_io import IndexShardIO, ShardIO
from captioning.run.sources import open_sources
from captioning.storage import StorageSettings
from tests.captioning.run.runs import drive, layout_of, make_archive, photos, shard_rows


def first(layout: RunLayout, archive: str) -> tuple[ShardIO, Index]:
    """For a new run."""
    index = write_segment(layout, open_sources([archive]), shard_size=5).commit()
    return IndexShardIO(index), index


def again(layout: RunLayout, archive: str) -> tuple[ShardIO, Index]:
    """For rows that are captioned again."""
    index = drive(layout, [archive], shard_size=5)
    plan = make_plan(layout, "retry", failed_images(layout, index, (), StorageSettings()))
    assert plan is not None
    return RedoShardIO(plan, index), index


@pytest.mark.parametrize("begin", [first, again])
def test_a_machine_that_does_not_see_output_creates_nothing(
    tmp_path: Path, begin: Callable[[RunLayout, str], tuple[ShardIO, Index]]
) -> None:
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    shard_io, index = begin(layout_of(output), str(make_archive(tmp_path / "archive", photos(10))))
    entries, rows = shard_io.entries(0), shard_rows(index, index.shard(0))
    output.rename(elsewhere)
    for work in (lambda: shard_io.entries(0), lambda: shard_io.stage(0, rows)):
        with pytest.raises(StorageError, match=r"does not exist on .*would be lost.*all nodes can reach"):
            work()
    assert not output.exists()
    elsewhere.rename(output)
    before = {path for path in output.rglob("*") if path.is_file()}
    assert shard_io.entries(0) == entries
    shard_io.stage(0, rows)
    assert len({path for path in output.rglob("*") if path.is_file()} - before) == 1
