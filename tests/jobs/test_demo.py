"""The demo's photos exist, and its printed table equals the run's."""

from pathlib import Path

import pytest

from captioning.data.images import decode_image
from captioning.run.table import Row, rows_to_table
from jobs.demo import PHOTOS, copy_photos, show


def test_every_photo_comes_with_an_installed_package(tmp_path: Path) -> None:
    assert copy_photos(tmp_path) == len(PHOTOS)
    for path in tmp_path.iterdir():
        assert min(decode_image(path.read_bytes()).shape[:2]) >= 100


def test_the_table_shows_captions_and_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    good = Row(
        image_id="cat.png",
        uri="/cat.png",
        caption="a cat on a mat",
        score=-0.5,
        num_tokens=6,
        alternatives=(("a cat on a mat", -0.5),),
        width=8,
        height=8,
        size_bytes=9,
        model="m",
    )
    bad = Row(
        image_id="dog.png",
        uri="/dog.png",
        caption=None,
        score=None,
        num_tokens=None,
        alternatives=(),
        status="error",
        error_class="truncated",
        error_message="cut",
        width=None,
        height=None,
        size_bytes=9,
        model="m",
    )
    pq.write_table(rows_to_table([bad, good]), tmp_path / "part-00000000-00000000.parquet")
    show(tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert any("cat.png" in " ".join(line) and "a cat on a mat" in " ".join(line) for line in lines)
    assert any("truncated:" in " ".join(line) for line in lines)
