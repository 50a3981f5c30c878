"""The outcome of a run: `summary.json`, the lines for the user, and the error for an unsuccessful run."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from captioning.errors import StorageError, UnfinishedError
from captioning.run.layout import RunLayout
from captioning.run.segment import Segment
from captioning.run.sources import Source
from captioning.run.verify import Verdict
from jobs.progress import counted, duration
from jobs.runners.work import STAGES, Tally


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run."""

    summary: dict[str, Any]
    verdict: Verdict
    max_error_fraction: float

    @property
    def too_many_errors(self) -> bool:
        """Whether more of the table's images failed than `errors.max_fraction` allows."""
        failed = sum(self.verdict.errors.values())
        return failed > self.max_error_fraction * self.verdict.inputs

    @property
    def ok(self) -> bool:
        """Whether every image has its row, and few enough failed."""
        return self.verdict.ok and not self.too_many_errors


def summarise(tally: Tally, verdict: Verdict, *, seconds: float, steady_rate: float | None) -> dict[str, Any]:
    """The content of `summary.json` for a run that took `seconds`; counts are images."""
    classes, done = tally.error_classes, tally.images
    return {
        "inputs": verdict.inputs,
        "captioned": done - classes.total(),
        "errors": classes.total(),
        "error_classes": dict(sorted(classes.items())),
        # An image can be captioned twice, by the rest of a killed retry and as a changed one.
        "already_done": max(0, verdict.inputs - done),
        "seconds": round(seconds, 3),
        "images_per_second": round(done / seconds, 3) if seconds > 0 else 0.0,
        "steady_images_per_second": round(steady_rate, 3) if steady_rate else None,
        "stages": {name: round(tally.stages[name], 3) for name in STAGES},
    }


def read_summary(layout: RunLayout) -> dict[str, Any]:
    """The content of `summary.json`; empty if it does not exist or cannot be read."""
    try:
        values = json.loads(layout.summary.read_bytes())
    except (StorageError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def final_lines(outcome: Outcome, output: str) -> list[str]:
    """Lines to show to the user at the end of `caption`."""
    summary, verdict = outcome.summary, outcome.verdict
    done = summary["captioned"] + summary["errors"]
    if not done and verdict.ok:
        lines = [f"Nothing to do: every image has its row in {output} ({counted(verdict.inputs, 'image')})."]
    else:
        rate = summary["steady_images_per_second"]
        speed = f" ({rate:,.1f} images/s after start-up)" if rate else ""
        before = f", {summary['already_done']:,} already done" if summary["already_done"] else ""
        lines = [
            f"{counted(summary['captioned'], 'image')} captioned{before}, in {duration(summary['seconds'])}{speed}. "
            f"The table: {output}/part-*.parquet"
        ]
    return lines + error_lines(verdict)


def retry_lines(outcome: Outcome, output: str, classes: Sequence[str]) -> list[str]:
    """Lines to show to the user at the end of `retry`."""
    summary, verdict = outcome.summary, outcome.verdict
    captioned, again = summary["captioned"], summary["errors"]
    if not captioned + again:
        which = f" of class {' or '.join(classes)}" if classes else ""
        lines = [f"Nothing to retry: {output} has no failed rows{which}."]
    else:
        lines = [
            f"{counted(captioned + again, 'failed image')} retried in {duration(summary['seconds'])}: "
            f"{captioned:,} now {'has a caption' if captioned == 1 else 'have captions'}, {again:,} failed again. "
            f"The table: {output}/part-*.parquet"
        ]
    return lines + error_lines(verdict)


def require_success(outcome: Outcome, output: str, hint: str) -> None:
    """Raise `UnfinishedError` if rows are missing (`hint` says how to go on), or if too many images failed."""
    if not outcome.verdict.ok:
        problems = "\n  ".join(outcome.verdict.problems)
        raise UnfinishedError(f"The table in {output} is incomplete or has errors:\n  {problems}\n{hint}")
    if outcome.too_many_errors:
        raise UnfinishedError(
            f"More images failed than errors.max_fraction={outcome.max_error_fraction:g} allows. Their rows are "
            f"written, with the reasons in error_class and error_message; see: python -m jobs report {output}"
        )


def error_lines(verdict: Verdict) -> list[str]:
    """A line with the number of error rows by class; none if no image failed."""
    if not verdict.errors:
        return []
    classes = ", ".join(f"{count:,} {name}" for name, count in sorted(verdict.errors.items()))
    failed = sum(verdict.errors.values())
    return [f"{failed:,} of {verdict.inputs:,} images failed and have an error row: {classes}."]


def listing_lines(sources: Sequence[Source], before: Sequence[Segment] = ()) -> list[str]:
    """Lines about skipped files and other findings of a listing; only those that are new since `before`."""
    skipped: Counter[str] = Counter()
    lines = []
    known = {note for segment in before for note in segment.notes}
    last = before[-1] if before else None
    for source in sources:
        skipped.update(source.skipped)
        lines += [note for note in source.notes if note not in known]
    if last is None or sum(source.repeated for source in sources) != last.repeated:
        for source in sources:
            if source.repeated:
                lines.append(f"{source.given}: {source.repeated:,} lines repeat earlier ones and were skipped.")
    if skipped and (last is None or skipped != Counter(last.skipped)):
        kinds = ", ".join(
            f"{count:,} {extension or 'without extension'}" for extension, count in skipped.most_common(8)
        )
        lines.append(f"Skipped {counted(skipped.total(), 'file')} without an image extension: {kinds}.")
    return lines
