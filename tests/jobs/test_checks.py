"""The checks of `caption`, `plan` and `retry` before anything is written."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.errors import UsageError
from captioning.run.table import SCHEMA
from captioning.storage import Location
from jobs.caption_settings import CaptionSettings
from jobs.driving.checks import open_inputs, require_output
from jobs.planning import run as planning
from jobs.planning.run import PlanRequest
from tests.jobs.archive import encode, picture


def test_an_output_in_its_archive_is_no_part_of_it(tmp_path: Path) -> None:
    rows = [{"image": encode(picture(number), "JPEG")} for number in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "photos.parquet")
    output = tmp_path / "out"
    output.mkdir()
    pq.write_table(SCHEMA.empty_table(), output / "part-00000000-00000000.parquet")
    settings = CaptionSettings()
    [source] = open_inputs([str(tmp_path)], settings, Location.parse(str(output)), None)
    assert len(list(source.entries())) == 4
    request = PlanRequest(
        inputs=(str(tmp_path),),
        output=str(output),
        model=None,
        settings=settings,
        decoding={},
        sample=None,
        price_per_hour=None,
    )
    [[planned], *_] = planning._open(request)
    assert list(planned.entries()) == list(source.entries())


def test_an_output_is_a_folder(tmp_path: Path) -> None:
    require_output(Location.parse(str(tmp_path / "new")))
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(UsageError, match="OUTPUT"):
            require_output(Location.parse(str(tmp_path / place)))
