"""A comparison of two runs as lines for a terminal, and as plain values."""

from typing import TYPE_CHECKING, Any

from captioning.redaction import redacted, without_secrets
from jobs.progress import counted, duration, percent

if TYPE_CHECKING:
    from jobs.comparing.run import Comparison

_SETTINGS_SHOWN = 8
_LONGEST = 60


def comparison_lines(found: "Comparison") -> list[str]:
    """The comparison as the lines of a small table."""
    counts, (one, other), sides = found.counts, found.runs, found.counts.sides
    rows = [("runs", f"{one.name} ({one.model}) and {other.name} ({other.model})")]
    alone = [f"{side.only:,} only in {run.name}" for side, run in zip(sides, found.runs, strict=True) if side.only]
    rows.append(("images", ", ".join([f"{counts.shared:,} in both", *alone])))
    for side, run in zip(sides, found.runs, strict=True):
        if side.only:
            rows.append(("", f"only in {run.name}: {_some(side.only_examples, side.only)}"))
    if counts.captioned:
        rows.append(
            (
                "captions",
                f"{counted(counts.captioned, 'image')} captioned in both: {counts.identical:,} identical "
                f"({percent(counts.identical, counts.captioned)}), {counts.different:,} differ; "
                f"mean token overlap {counts.mean_overlap:.3f}",
            )
        )
        rows.append(
            (
                "CIDEr-D",
                f"{sides[0].cider_d:.1f} {one.name} with {other.name} as reference, "
                f"{sides[1].cider_d:.1f} the other way"
                if sides[0].cider_d is not None and sides[1].cider_d is not None
                else "not computed",
            )
        )
        if counts.cider_images < counts.captioned:
            rows.append(("", f"on {counts.cider_images:,} images drawn at random"))
        rows.append(
            (
                "length",
                f"{sides[0].mean_words:.1f} and {sides[1].mean_words:.1f} words, score {sides[0].mean_score:.2f} and "
                f"{sides[1].mean_score:.2f}",
            )
        )
    failed = [sum(side.errors.values()) for side in sides]
    rows.append(("errors", f"{failed[0]:,} and {failed[1]:,}; {counted(counts.errors_differ, 'image')} differ"))
    for pair in counts.error_pairs:
        if pair.outcomes[0] != pair.outcomes[1]:
            what = f"{pair.count:,} {pair.outcomes[0]} → {pair.outcomes[1]}"
            rows.append(("", f"{what}: {_some(pair.examples, pair.count)}"))
    rates = [f"{run.images_per_second:,.1f}" if run.images_per_second else "unknown" for run in found.runs]
    times = [duration(run.seconds) if run.seconds is not None else "?" for run in found.runs]
    rows.append(("speed", f"{rates[0]} and {rates[1]} images/s; the last runs took {times[0]} and {times[1]}"))
    rows.append(("settings", f"{len(found.settings):,} differ" if found.settings else "the same"))
    # Settings that people choose come before the captioners' architecture.
    settings = sorted(found.settings, key=lambda setting: ".architecture." in setting[0])
    rows += [("", f"{key}: {_short(here)} → {_short(there)}") for key, here, there in settings[:_SETTINGS_SHOWN]]
    if len(found.settings) > _SETTINGS_SHOWN:
        rows.append(("", f"and {len(found.settings) - _SETTINGS_SHOWN:,} more (--json lists all)"))
    return [without_secrets(f"{name:<10}{text}") for name, text in rows]


def comparison_json(found: "Comparison") -> dict[str, Any]:
    """The comparison as plain values."""
    counts = found.counts
    values = {
        "runs": [
            {
                "output": str(run.layout.root),
                "model": run.model,
                "fingerprint": run.record.fingerprint,
                "rows": side.rows,
                "errors": side.errors,
                "only_here": side.only,
                "only_here_examples": list(side.only_examples),
                "cider_d_against_other": side.cider_d,
                "mean_score": side.mean_score,
                "mean_words": side.mean_words,
                "words_used_more": [{"word": word, "here": here, "there": there} for word, here, there in side.words],
                "images_per_second": run.images_per_second,
                "seconds": run.seconds,
            }
            for run, side in zip(found.runs, counts.sides, strict=True)
        ],
        "shared": counts.shared,
        "captioned_in_both": counts.captioned,
        "identical": counts.identical,
        "same_tokens": counts.same_tokens,
        "different": counts.different,
        "mean_token_overlap": counts.mean_overlap,
        "cider_d_images": counts.cider_images,
        "errors_differ": counts.errors_differ,
        "outcomes": [
            {
                "first": pair.outcomes[0],
                "second": pair.outcomes[1],
                "images": pair.count,
                "examples": list(pair.examples),
            }
            for pair in counts.error_pairs
        ],
        "settings": [{"key": key, "first": here, "second": there} for key, here, there in found.settings],
    }
    plain: dict[str, Any] = redacted(values)
    return plain


def _some(examples: tuple[str, ...], total: int) -> str:
    return ", ".join(examples[:3]) + (" …" if total > 3 else "")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
