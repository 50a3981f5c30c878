"""Scans a caption table once for counts, distributions and the rows that the report shows.

Memory is bounded whatever the table's size.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from captioning.errors import StorageError
from captioning.run.layout import RunLayout
from captioning.storage import Location
from jobs.reporting.rows import RowSample
from jobs.reporting.tally import SMALL_WORDS, NearDuplicates, Tally, TopTexts

_COLUMNS = [
    *("image_id", "uri", "caption", "score", "alternatives", "status", "error_class", "error_message"),
    *("width", "height", "size_bytes", "model"),
]
_BATCH_ROWS = 16_384

#: Lower mean log-probabilities are counted as this one.
_LOWEST_SCORE, _SCORE_STEP = -8.0, 0.05
_MOST_WORDS = 60
_EXAMPLES_A_CLASS = 10
_ATTEMPTS = 4


@dataclass(frozen=True)
class PhotoRow:
    """A captioned row that the report shows."""

    image_id: str
    uri: str
    caption: str
    score: float
    alternatives: tuple[tuple[str, float], ...]
    width: int
    height: int
    size_bytes: int | None


@dataclass(frozen=True)
class ErrorClass:
    """The rows of one error class: their number, and (image_id, message) of the first ones."""

    name: str
    count: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Histogram:
    """Counts per bin; bins are `step` wide, and the first one begins at `start`."""

    start: float
    step: float
    counts: tuple[int, ...]
    mean: float

    @property
    def total(self) -> int:
        """The number of values."""
        return sum(self.counts)


@dataclass(frozen=True)
class TableFacts:
    """What one pass over the table found."""

    captioned: int
    errors: tuple[ErrorClass, ...]
    scores: Histogram
    lengths: Histogram
    captions: TopTexts
    words: TopTexts
    near_duplicates: NearDuplicates
    models: tuple[str, ...]
    size_bytes: int
    sample: tuple[PhotoRow, ...]
    least_confident: tuple[PhotoRow, ...]
    searched: pa.Table
    """Rows of `rows.COLUMNS` to search: all, or a uniform sample, in order."""

    @property
    def failed(self) -> int:
        """The number of rows with an error."""
        return sum(error.count for error in self.errors)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.captioned + self.failed

    def without_least_confident(self) -> "TableFacts":
        """A copy without the rows of the lowest scores, for a page that shows every row."""
        return replace(self, least_confident=())


def table_files(layout: RunLayout) -> list[Location]:
    """The files that hold a run's rows: parts, and staged shards that are in no part yet. No row is in two of them."""
    # Staged files are listed first: a shard folded in between is then found in its part.
    staged = layout.staged_numbers()
    parts = layout.parts()
    staged = [number for number in staged if not any(number in part.numbers for part in parts)]
    return [layout.part(part) for part in parts] + [layout.staged(number) for number in staged]


def read_run(layout: RunLayout, *, sample: int, least_confident: int, searched: int) -> TableFacts:
    """`read_table` of a run that may be at work: retries when a staged file was folded meanwhile."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return read_table(table_files(layout), sample=sample, least_confident=least_confident, searched=searched)
        except StorageError as error:
            if error.error_class != "missing":
                raise
    return read_table(table_files(layout), sample=sample, least_confident=least_confident, searched=searched)


def read_table(files: Iterable[Location], *, sample: int, least_confident: int, searched: int) -> TableFacts:
    """Read the table's files once.

    Draws `sample` captioned rows to show and `searched` rows of any kind to search, uniformly, and the
    same ones for the same files; `least_confident` is the number of rows with the lowest scores.
    """
    reading = _TableScan(sample, least_confident, searched)
    for batch in table_batches(files, _COLUMNS):
        reading.add(batch)
    return reading.facts()


def table_batches(files: Iterable[Location], columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of the table's files, in batches of rows. Raises `StorageError`."""
    for file in files:
        with file.open_read() as stream:
            try:
                parquet = pq.ParquetFile(stream)
                for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)):
                    yield pa.Table.from_batches([batch])
            except (pa.ArrowInvalid, OSError) as error:
                raise StorageError("storage", f"{file} is damaged: {error}. Run `verify` for details.") from error


class _SmallestKeys:
    """Keeps the `number` rows with the smallest keys."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._rows: list[tuple[float, int, PhotoRow]] = []
        self._seen = 0

    def add(self, rows: pa.Table, keys: NDArray[np.floating[Any]]) -> None:
        first, self._seen = self._seen, self._seen + rows.num_rows
        if self._number == 0 or rows.num_rows == 0:
            return
        best = np.argsort(keys, kind="stable")[: self._number]
        photos = [_photo(row) for row in rows.take(pa.array(best)).to_pylist()]
        self._rows += [(float(keys[at]), first + int(at), photo) for at, photo in zip(best, photos, strict=True)]
        self._rows = sorted(self._rows, key=lambda item: item[:2])[: self._number]

    def in_order(self) -> tuple[PhotoRow, ...]:
        return tuple(photo for _, _, photo in sorted(self._rows, key=lambda item: item[1]))

    def by_key(self) -> tuple[PhotoRow, ...]:
        return tuple(photo for _, _, photo in self._rows)


class _TableScan:
    def __init__(self, sample: int, least_confident: int, searched: int) -> None:
        self._random = np.random.default_rng(0)
        self._sample, self._least_confident = _SmallestKeys(sample), _SmallestKeys(least_confident)
        self._searched = RowSample(searched)
        self._errors: Counter[str] = Counter()
        self._examples: dict[str, list[tuple[str, str]]] = {}
        self._scores = np.zeros(round(-_LOWEST_SCORE / _SCORE_STEP), dtype=np.int64)
        self._lengths = np.zeros(_MOST_WORDS + 1, dtype=np.int64)
        self._score_sum = self._length_sum = 0.0
        self._captioned = self._bytes = 0
        self._captions, self._words, self._models = Tally(), Tally(), Tally()

    def add(self, rows: pa.Table) -> None:
        self._searched.add(rows)
        good = pc.equal(rows["status"], "ok")
        self._add_errors(rows.filter(pc.invert(good)))
        self._models.add(rows["model"])
        self._bytes += pc.sum(rows["size_bytes"]).as_py() or 0
        self._add_captions(rows.filter(good))

    def _add_errors(self, rows: pa.Table) -> None:
        for row in rows.select(["image_id", "error_class", "error_message"]).to_pylist():
            name = row["error_class"] or "unknown"
            self._errors[name] += 1
            examples = self._examples.setdefault(name, [])
            if len(examples) < _EXAMPLES_A_CLASS:
                examples.append((row["image_id"], row["error_message"] or ""))

    def _add_captions(self, rows: pa.Table) -> None:
        self._captioned += rows.num_rows
        scores = rows["score"].to_numpy().astype(np.float64)
        words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(rows["caption"]))
        # Splitting an empty text gives one empty word.
        lengths = np.where(pc.equal(rows["caption"], "").to_numpy(), 0, pc.list_value_length(words).to_numpy())
        steps = np.floor((np.nan_to_num(scores, nan=_LOWEST_SCORE) - _LOWEST_SCORE) / _SCORE_STEP)
        bins = np.clip(steps, 0, len(self._scores) - 1).astype(np.int64)
        self._scores += np.bincount(bins, minlength=len(self._scores))
        self._lengths += np.bincount(np.minimum(lengths, _MOST_WORDS), minlength=_MOST_WORDS + 1)
        self._score_sum += float(np.nansum(scores))
        self._length_sum += float(lengths.sum())
        self._captions.add(rows["caption"])
        self._words.add(pc.utf8_trim(pc.utf8_lower(pc.list_flatten(words)), characters=".,;:!?\"'()"))
        self._sample.add(rows, self._random.random(rows.num_rows))
        self._least_confident.add(rows, scores)

    def facts(self) -> TableFacts:
        number = max(self._captioned, 1)
        errors = sorted(self._errors.items(), key=lambda item: (-item[1], item[0]))
        return TableFacts(
            captioned=self._captioned,
            errors=tuple(ErrorClass(name, count, tuple(self._examples[name])) for name, count in errors),
            scores=_trimmed(self._scores, _LOWEST_SCORE, _SCORE_STEP, self._score_sum / number),
            lengths=_trimmed(self._lengths, 0, 1, self._length_sum / number),
            captions=self._captions.result(20),
            words=self._words.result(40, SMALL_WORDS),
            near_duplicates=self._captions.near_duplicates(15),
            models=tuple(name for name, _ in self._models.result(5).top),
            size_bytes=self._bytes,
            sample=self._sample.in_order(),
            least_confident=self._least_confident.by_key(),
            searched=self._searched.table(),
        )


def _photo(row: dict[str, Any]) -> PhotoRow:
    alternatives = tuple((str(other["caption"]), float(other["score"])) for other in row["alternatives"] or [])
    return PhotoRow(
        image_id=row["image_id"],
        uri=row["uri"],
        caption=row["caption"] or "",
        score=float("nan") if row["score"] is None else float(row["score"]),
        alternatives=alternatives[1:],
        width=row["width"] or 0,
        height=row["height"] or 0,
        size_bytes=row["size_bytes"],
    )


def _trimmed(counts: NDArray[np.int64], start: float, step: float, mean: float, most: int = 48) -> Histogram:
    """The range of non-empty bins, with neighbours merged until there are at most `most`."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return Histogram(start, step, (), 0.0)
    first, stop = int(filled[0]), int(filled[-1]) + 1
    width = 1
    while (stop - 1) // width - first // width + 1 > most:
        width *= 2
    first -= first % width
    stop += -(stop - first) % width
    padded: Sequence[int] = (
        np.pad(counts, (0, max(0, stop - len(counts))))[first:stop].reshape(-1, width).sum(1).tolist()
    )
    return Histogram(start + first * step, step * width, tuple(padded), mean)
