"""Compares two caption runs and writes the page about it. Needs no model and no Ray."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge

from captioning.config import settings
from captioning.errors import UnfinishedError, UsageError
from captioning.run.events import read_events
from captioning.run.fingerprint import differences
from captioning.run.layout import RunLayout
from captioning.run.progress import run_progress
from captioning.run.record import RunRecord
from captioning.storage import Location, StorageSettings
from jobs.comparing.count import CIDER_IMAGES, Counts, count
from jobs.comparing.join import COLUMNS, join
from jobs.comparing.page import compare_page
from jobs.driving.outcome import read_summary
from jobs.driving.storage import recorded_storage
from jobs.reporting.photos import Thumbnail, thumbnails
from jobs.reporting.table import table_batches, table_files
from jobs.reporting.throughput import rate_over_time


@settings
class CompareSettings:
    """How two runs are compared."""

    max_photos: Annotated[int, Ge(0)] = 100
    """Most disagreements on the page: those with the fewest shared words."""
    cider_images: Annotated[int, Ge(0)] = CIDER_IMAGES
    """Most images that CIDEr-D is computed on, some 3 kB of memory each; of more, a random sample of this size."""
    unfinished: bool = False
    """Compare unfinished runs, as far as they are done."""
    storage: StorageSettings | None = None
    """How the runs and their images are reached; the images by default as each run reached them."""


@dataclass
class ComparedRun:
    """One of the two runs."""

    layout: RunLayout
    record: RunRecord
    name: str
    rows: int
    """Images with a row when the comparison began."""
    seconds: float | None
    images_per_second: float | None
    models: set[str] = field(default_factory=set)
    """Collected while the rows are read."""

    @property
    def model(self) -> str:
        """The model or models that made the captions."""
        return ", ".join(sorted(self.models)) or "no model"


@dataclass(frozen=True)
class Comparison:
    """Two runs, what they have in common, and the settings that differ: (key, here, there) as text."""

    runs: tuple[ComparedRun, ComparedRun]
    counts: Counts
    settings: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class WrittenPage:
    """The written page: thumbnails, photos without one, bytes."""

    photos: int
    missing_photos: int
    size_bytes: int


def compare_runs(
    one: Location, other: Location, options: CompareSettings | None = None, *, page: Location | None = None
) -> Comparison:
    """Compare the runs in two OUTPUTs. A `page` that cannot be written is refused before the work.

    Raises `UsageError` where one is not a run, or the two share no image, `UnfinishedError` where one is
    not finished, and `StorageError`.
    """
    options = options or CompareSettings()
    if page is not None and page.is_dir():
        raise UsageError(f"The page cannot be written to {page}, which is a folder. Use a file, such as compare.html.")
    names = _names(str(one), str(other))
    runs = _open_run(one, names[0], options), _open_run(other, names[1], options)
    tables = [_rows(run) for run in runs]
    buckets = join(tables[0], tables[1], max(run.rows for run in runs))
    counts = count(buckets, widest=options.max_photos, cider_images=options.cider_images)
    if not counts.shared:
        shown = [
            f"{side.only_examples[0]!r} in {run.layout.root}" for side, run in zip(counts.sides, runs, strict=True)
        ]
        raise UsageError(
            f"The two runs share no images: their ids differ, such as {shown[0]} and {shown[1]}. Compare runs over "
            "the same archive, given as the same INPUT: ids are paths relative to it."
        )
    return Comparison(runs, counts, tuple(_differences(*(run.record for run in runs))))


def write_page(found: Comparison, file: Location, options: CompareSettings) -> WrittenPage:
    """Write the page of the widest disagreements to `file`. Raises `StorageError`."""
    pictures = _thumbnails(found, options)
    data = compare_page(found, pictures)
    file.write_bytes(data)
    good = sum(1 for picture in pictures.values() if picture.data_uri)
    return WrittenPage(good, len(pictures) - good, len(data))


def _thumbnails(found: Comparison, options: CompareSettings) -> dict[str, Thumbnail]:
    """Thumbnails from where the first run found the images, else from where the other did."""
    pictures: dict[str, Thumbnail] = {}
    for run in found.runs:
        wanted = [
            pair for pair in found.counts.widest if not (made := pictures.get(pair.image_id)) or not made.data_uri
        ]
        if not wanted:
            break
        made_now = thumbnails(run.layout, wanted, options.storage or recorded_storage(run.record))
        pictures |= {image_id: made for image_id, made in made_now.items() if made.data_uri or image_id not in pictures}
    return pictures


def _open_run(output: Location, name: str, options: CompareSettings) -> ComparedRun:
    layout = RunLayout(output)
    record = RunRecord.read(layout)
    if record is None:
        raise UsageError(f"There is no caption run in {output} (no _run/run.json). Pass the OUTPUT of a `caption` run.")
    stands = run_progress(layout)
    if not stands.finished and not options.unfinished:
        raise UnfinishedError(
            f"The run in {output} is not finished: {stands.done:,} of {stands.images:,} images have a row. Run its "
            "`caption` command again to resume it, or compare what is done so far with --set unfinished=true."
        )
    summary = read_summary(layout)
    rate = summary.get("steady_images_per_second") or summary.get("images_per_second")
    before = summary.get("already_done")
    # The summary of a short session, such as a retry, says little about the run's speed.
    of_all = isinstance(before, int) and before <= stands.done / 2
    if not isinstance(rate, int | float) or rate <= 0 or not of_all:
        rate = rate_over_time(read_events(layout)).mean
    seconds = summary.get("seconds")
    return ComparedRun(layout, record, name, stands.done, seconds if isinstance(seconds, int | float) else None, rate)


def _rows(run: ComparedRun) -> Iterator[pa.Table]:
    for table in table_batches(table_files(run.layout), [*COLUMNS, "model"]):
        run.models.update(name for name in pc.unique(table["model"]).to_pylist() if name)
        yield table


def _differences(one: RunRecord, other: RunRecord) -> Iterator[tuple[str, str, str]]:
    # The fingerprint's parts come first; settings that repeat them are left out.
    seen = set()
    for part in ("fingerprint_parts", "settings", "selection", "versions"):
        for key, here, there in differences(getattr(one, part), getattr(other, part)):
            last = key.rpartition(".")[2]
            if (last, here, there) not in seen:
                seen.add((last, here, there))
                yield key, here, there
    if one.inputs != other.inputs:
        yield "inputs", ", ".join(one.inputs), ", ".join(other.inputs)


def _names(one: str, other: str) -> tuple[str, str]:
    """The runs' display names: the shortest differing ends of their paths."""
    ours, theirs = one.rstrip("/").split("/"), other.rstrip("/").split("/")
    for length in range(1, max(len(ours), len(theirs)) + 1):
        if ours[-length:] != theirs[-length:]:
            return "/".join(ours[-length:]), "/".join(theirs[-length:])
    return one, other
