"""One self-contained HTML page about a caption run, written.

Puts together what the modules beside it find and draw. Needs no model and no Ray.
"""

from dataclasses import dataclass
from typing import Annotated

import yaml
from annotated_types import Ge

from captioning.config import settings
from captioning.errors import UsageError
from captioning.run.events import read_events
from captioning.run.index import Index
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.storage import Location, StorageSettings
from jobs.driving.outcome import read_summary
from jobs.driving.storage import recorded_storage
from jobs.reporting.page import PageFacts, page
from jobs.reporting.photos import thumbnails
from jobs.reporting.table import read_run, table_files
from jobs.reporting.times import rate_over_time

#: How many photos the page shows at most: a thumbnail is about 15 kB.
MAX_PHOTOS = 200
#: How many rows the page can search through: some 30 bytes each.
MAX_ROWS = 100_000
#: How many of the lowest scores are shown beside a drawn sample.
_LEAST_SURE = 12


@settings
class ReportSettings:
    """How a run is reported."""

    max_photos: Annotated[int, Ge(0)] = MAX_PHOTOS
    """Photos in the gallery at most; of a larger run, so many are drawn at random."""
    storage: StorageSettings | None = None
    """How the run and its images are reached; the images by default as the run reached them."""


@dataclass(frozen=True)
class ReportFacts:
    """What was written: where, and how much is in it."""

    file: Location
    images: int
    captioned: int
    errors: int
    photos: int
    """Thumbnails on the page."""
    missing_photos: int
    """Photos that could not be fetched or decoded again."""
    size_bytes: int


def write_report(
    output: Location, file: Location, *, max_photos: int = MAX_PHOTOS, storage: StorageSettings | None = None
) -> ReportFacts:
    """Write the page about the run in `output` to `file`, and say what is on it.

    `storage` says how the images are reached; without it as the run did. An unfinished run is
    reported as far as it is done. Raises `UsageError` where there is no run, or no place for the
    page, and `StorageError`.
    """
    layout = RunLayout(output)
    record = RunRecord.read(layout)
    if record is None and not table_files(layout):
        if (output / "train.json").exists():
            raise UsageError(f"{output} is of a training, which keeps its own page: open {output / 'report.html'}.")
        raise UsageError(f"There is no caption run in {output}. Give the OUTPUT of `caption`.")
    if file.is_dir():
        raise UsageError(f"The page cannot be written to {file}, which is a folder. Give a file, such as report.html.")
    table = read_run(layout, sample=max_photos, least_sure=_LEAST_SURE, searched=MAX_ROWS)
    if table.captioned <= max_photos:
        table = table.without_least_sure()
    shown = [*table.sample, *table.least_sure]
    pictures = thumbnails(layout, shown, storage or recorded_storage(record))
    text = page(
        PageFacts(
            output=str(output),
            table=table,
            thumbnails=pictures,
            rate=rate_over_time(read_events(layout)),
            summary=read_summary(layout),
            settings=yaml.safe_dump(dict(record.settings), sort_keys=False, allow_unicode=True) if record else "",
            about=_about(record) if record else (),
            complete=table.rows >= Index.load(layout).rows_total,
        )
    )
    file.write_bytes(text)
    good = sum(1 for picture in pictures.values() if picture.data_uri)
    return ReportFacts(file, table.rows, table.captioned, table.failed, good, len(pictures) - good, len(text))


def _about(record: RunRecord) -> list[tuple[str, str]]:
    """What tells this run from others, for people: names and values."""
    facts = [("archive", ", ".join(record.inputs)), ("begun", record.created), ("fingerprint", record.fingerprint)]
    facts += [(f"--{name}", str(value)) for name, value in record.selection.items()]
    return [*facts, ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items()))]
