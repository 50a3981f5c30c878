"""Writes the report: one self-contained HTML page about a caption run. Needs no model and no Ray."""

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
from jobs.reporting.throughput import rate_over_time

#: Most photos on the page: a thumbnail is about 15 kB.
MAX_PHOTOS = 200
#: Most rows that the page can search: some 30 bytes each.
MAX_ROWS = 100_000
#: How many rows with the lowest scores are shown in addition to a sample.
_LEAST_CONFIDENT = 12


@settings
class ReportSettings:
    """How a run is reported."""

    max_photos: Annotated[int, Ge(0)] = MAX_PHOTOS
    """Photos in the gallery at most; of a larger run, a random sample of this size."""
    storage: StorageSettings | None = None
    """How the run and its images are reached; the images by default as the run reached them."""


@dataclass(frozen=True)
class ReportFacts:
    """Where the page was written, and what is on it."""

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
    """Write the page about the run in `output` to `file`, and return what is on it.

    `storage` sets how the images are reached; by default as the run did. An unfinished run is
    reported as far as it is done. Raises `UsageError` where there is no run or `file` is a folder,
    and `StorageError`.
    """
    layout = RunLayout(output)
    record = RunRecord.read(layout)
    if record is None and not table_files(layout):
        if (output / "train.json").exists():
            raise UsageError(f"{output} is a training run, which has its own page: open {output / 'report.html'}.")
        raise UsageError(f"There is no caption run in {output}. Pass the OUTPUT of a `caption` run.")
    if file.is_dir():
        raise UsageError(f"The page cannot be written to {file}, which is a folder. Use a file, such as report.html.")
    table = read_run(layout, sample=max_photos, least_confident=_LEAST_CONFIDENT, searched=MAX_ROWS)
    if table.captioned <= max_photos:
        table = table.without_least_confident()
    shown = [*table.sample, *table.least_confident]
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
    """What identifies this run: names and values, for people."""
    facts = [("archive", ", ".join(record.inputs)), ("started", record.created), ("fingerprint", record.fingerprint)]
    facts += [(f"--{name}", str(value)) for name, value in record.selection.items()]
    return [*facts, ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items()))]
