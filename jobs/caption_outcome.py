"""How a run of `caption` ended, in figures and in words. Knows nothing of how it went."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from captioning.run.sources import Source
from captioning.run.verify import Verdict
from jobs.pipeline import ShardResult
from jobs.progress import counted, duration


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

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


def summarise(
    results: Iterable[ShardResult], verdict: Verdict, *, seconds: float, steady_rate: float | None
) -> dict[str, Any]:
    """What `summary.json` says of a run that finished these shards in `seconds`; counts are images."""
    classes: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    done = 0
    for result in results:
        done += result.images
        classes.update(result.error_classes)
        stages.update(result.stages)
    return {
        "inputs": verdict.inputs,
        "captioned": done - classes.total(),
        "errors": classes.total(),
        "error_classes": dict(sorted(classes.items())),
        "already_done": verdict.inputs - done,
        "seconds": round(seconds, 3),
        "images_per_second": round(done / seconds, 3) if seconds > 0 else 0.0,
        "steady_images_per_second": round(steady_rate, 3) if steady_rate else None,
        "stages": {name: round(stages[name], 3) for name in ("fetch", "decode", "model", "write")},
    }


def final_lines(outcome: Outcome, output: str) -> list[str]:
    """What a person is told at the end, a line each."""
    summary, verdict = outcome.summary, outcome.verdict
    done = summary["captioned"] + summary["errors"]
    if not done and verdict.ok:
        lines = [
            f"Nothing to do: of {counted(verdict.inputs, 'image')} in the archive, all have their row in {output}."
        ]
    else:
        rate = summary["steady_images_per_second"]
        speed = f" ({rate:,.1f} images/s once running)" if rate else ""
        before = f", {summary['already_done']:,} were done before" if summary["already_done"] else ""
        lines = [
            f"{counted(summary['captioned'], 'image')} captioned{before}, in {duration(summary['seconds'])}{speed}. "
            f"The table: {output}/part-*.parquet"
        ]
    if verdict.errors:
        classes = ", ".join(f"{count:,} {name}" for name, count in sorted(verdict.errors.items()))
        lines.append(
            f"{sum(verdict.errors.values()):,} of {verdict.inputs:,} images failed and have an error row: {classes}."
        )
    return lines


def listing_lines(sources: Sequence[Source]) -> list[str]:
    """What was passed over while listing, and what is odd about the archive."""
    skipped: Counter[str] = Counter()
    lines = []
    for source in sources:
        skipped.update(source.skipped)
        if source.repeated:
            lines.append(f"{source.given}: {source.repeated:,} lines repeat earlier ones and were passed over.")
        lines += source.notes
    if skipped:
        kinds = ", ".join(
            f"{count:,} {extension or 'without extension'}" for extension, count in skipped.most_common(8)
        )
        lines.append(f"Passed over {skipped.total():,} files that are no images by their extension: {kinds}.")
    return lines
