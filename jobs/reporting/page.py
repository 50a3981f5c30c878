"""The report as one self-contained HTML page.

Everything that comes from an archive or a model is escaped, and the page's policy forbids it to load anything.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.page_shell import command_block, escape, render_page
from jobs.progress import duration
from jobs.reporting.browse import browse, browse_data
from jobs.reporting.charts import curve, histogram, stacked
from jobs.reporting.photos import Thumbnail
from jobs.reporting.table import ErrorClass, TableFacts
from jobs.reporting.tally import NearDuplicates, TopTexts
from jobs.reporting.throughput import Rate

_SCRIPT = Path(__file__).with_suffix(".js")


@dataclass(frozen=True)
class PageFacts:
    """The content of the page."""

    output: str
    table: TableFacts
    thumbnails: Mapping[str, Thumbnail]
    rate: Rate
    summary: Mapping[str, Any]
    """`summary.json`, empty when the run has none yet."""
    settings: str
    """The run's settings as YAML, empty when unknown."""
    about: Sequence[tuple[str, str]]
    """Further facts about the run: names and values."""
    complete: bool
    """Whether every indexed image has its row."""


def page(facts: PageFacts) -> bytes:
    """The whole page."""
    name = facts.output.rstrip("/").rpartition("/")[2] or facts.output
    sections = [_head(facts, name), _figures(facts), browse(facts.table, facts.thumbnails), _errors(facts)]
    sections += [_distributions(facts), _frequent(facts), _speed(facts), _settings(facts)]
    body = "\n".join(section for section in sections if section)
    return render_page(f"Captions of {name}", body, script=_SCRIPT, data=browse_data(facts.table))


def _head(facts: PageFacts, name: str) -> str:
    links = [("photos", "Photos")]
    if facts.table.errors:
        links.append(("errors", "Errors"))
    links.append(("numbers", "Scores and lengths"))
    if facts.table.captions.top:
        links.append(("frequent", "Most frequent"))
    links += [("speed", "Speed"), ("settings", "Settings")]
    models = ", ".join(facts.table.models) or "no model"
    unfinished = (
        "" if facts.complete else '<p class="bad">This run is not finished: the page shows what is done so far.</p>'
    )
    return (
        f'<header><h1>Captions of {escape(name)}</h1><p class="quiet">{escape(facts.output)} · {escape(models)}</p>'
        f"{unfinished}<nav>" + "".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in links) + "</nav></header>"
    )


def _figures(facts: PageFacts) -> str:
    table = facts.table
    figures = [("images", f"{table.rows:,}"), ("captioned", f"{table.captioned:,}")]
    share = f" <small>{100 * table.failed / table.rows:.2g}%</small>" if table.failed else ""
    figures.append(("errors", f"{table.failed:,}{share}"))
    if table.captioned:
        distinct = f"{'' if table.captions.exact else 'over '}{table.captions.distinct:,}"
        figures.append(("different captions", distinct))
        figures.append(("mean score", f"{table.scores.mean:.2f}"))
        figures.append(("words per caption", f"{table.lengths.mean:.1f}"))
    rate = facts.summary.get("steady_images_per_second") or facts.summary.get("images_per_second") or facts.rate.mean
    if isinstance(rate, int | float) and rate > 0:
        figures.append(("images/s", f"{rate:,.3g}" if rate < 1000 else f"{rate:,.0f}"))
    return '<dl class="figures">' + "".join(f"<div><dt>{n}</dt><dd>{v}</dd></div>" for n, v in figures) + "</dl>"


def _errors(facts: PageFacts) -> str:
    if not facts.table.errors:
        return ""
    again = f"python -m jobs retry {shlex.quote(facts.output)}"
    classes = "".join(_error_class(error, again) for error in facts.table.errors)
    every = f"<p>Retry all of them:</p>{command_block(again)}" if len(facts.table.errors) > 1 else ""
    return (
        f'<section id="errors"><h2>Errors</h2><p class="quiet">{facts.table.failed:,} of {facts.table.rows:,} images '
        f'have no caption. Their rows give the reason.</p>{every}<div class="panels">{classes}</div></section>'
    )


def _error_class(error: ErrorClass, again: str) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(image_id)}</code></td><td>{escape(message)}</td></tr>"
        for image_id, message in error.examples
    )
    more = error.count - len(error.examples)
    rest = f'<p class="quiet">and {more:,} more</p>' if more else ""
    return (
        f'<div class="panel"><h3><span class="bad">{escape(error.name)}</span>: {error.count:,}</h3>'
        f"{command_block(f'{again} --error-class {shlex.quote(error.name)}')}"
        '<div class="scroll"><table class="examples"><tr><th>image</th><th>reason</th></tr>'
        f"{rows}</table></div>{rest}</div>"
    )


def _distributions(facts: PageFacts) -> str:
    scores = histogram(
        facts.table.scores,
        label="Histogram of scores",
        axis="score (mean log-probability per token)",
        bin_text=lambda start, stop: f"{start:.2f} to {stop:.2f}",
        picks="score",
    )
    lengths = histogram(
        facts.table.lengths,
        label="Histogram of caption lengths",
        axis="words per caption",
        bin_text=_word_range,
        picks="words",
    )
    return (
        '<section id="numbers"><h2>Scores and lengths</h2><div class="panels">'
        f'<div class="panel"><h3>Scores</h3>{scores}</div>'
        f'<div class="panel"><h3>Caption lengths</h3>{lengths}</div></div></section>'
    )


def _word_range(start: float, stop: float) -> str:
    return f"{start:.0f} words" if stop - start == 1 else f"{start:.0f} to {stop - 1:.0f} words"


def _frequent(facts: PageFacts) -> str:
    captions, words = facts.table.captions, facts.table.words
    if not captions.top:
        return ""
    rows = "".join(f'<tr><td>{escape(text)}</td><td class="number">{count:,}</td></tr>' for text, count in captions.top)
    items = "".join(
        f'<li><span data-find="{escape(word)}">{escape(word)}</span> <small>{count:,}</small></li>'
        for word, count in words.top
    )
    return (
        '<section id="frequent"><h2>Most frequent</h2><div class="panels"><div class="panel"><h3>Captions</h3>'
        f'<p class="quiet">{_repeats(captions, facts.table.captioned)}</p><table>'
        f'<tr><th>caption</th><th class="number">images</th></tr>{rows}</table></div><div class="panel stack">'
        '<div><h3>Words</h3><p class="quiet">Without stop words.</p>'
        f'<ul class="words">{items}</ul></div>{_near_duplicates(facts.table.near_duplicates, captions.exact)}</div>'
        "</div></section>"
    )


def _repeats(captions: TopTexts, total: int) -> str:
    if not captions.exact:
        return f"Over {captions.distinct:,} different captions; counts of rare ones may be too low."
    return f"{captions.distinct:,} different captions for {total:,} images ({100 * captions.distinct / total:.0f}%)."


def _near_duplicates(found: NearDuplicates, exact: bool) -> str:
    if not found.top:
        return ""
    groups = "".join(_near_duplicate_group(group.images, group.captions, group.shown) for group in found.top)
    among = "" if exact else " among the more frequent ones"
    return (
        '<div><h3>Near-identical captions</h3><p class="quiet">The same words, ignoring order, stop words '
        f"and punctuation: {found.groups:,} group{'' if found.groups == 1 else 's'} with {found.images:,} "
        f"images{among}.</p>"
        f'<ul class="alike">{groups}</ul></div>'
    )


def _near_duplicate_group(images: int, captions: int, shown: Sequence[tuple[str, int]]) -> str:
    lines = "".join(f"<li>{escape(text)} <small>{count:,}</small></li>" for text, count in shown)
    more = f'<li class="quiet">and {captions - len(shown):,} more</li>' if captions > len(shown) else ""
    return f"<li><small>{images:,} images</small><ul>{lines}{more}</ul></li>"


def _speed(facts: PageFacts) -> str:
    chart = curve(
        [(point.seconds, point.images_per_second) for point in facts.rate.points],
        label="Images per second over time",
        axis="working time",
        x_text=duration,
    )
    note = ""
    if facts.rate.pauses:
        times = "once" if facts.rate.pauses == 1 else f"{facts.rate.pauses} times"
        note = f'<p class="quiet">The run paused {times}; pauses are not counted.</p>'
    stages = facts.summary.get("stages")
    table = _stages(stages) if isinstance(stages, Mapping) and stages else ""
    panel = f'<div class="panel"><h3>Images per second</h3>{note}{chart}</div>{_busy(facts.rate)}'
    return f'<section id="speed"><h2>Speed</h2><div class="panels">{panel}{table}</div></section>'


def _busy(rate: Rate) -> str:
    """How many workers each stage kept busy over time, where the event log has it."""
    names = list(dict.fromkeys(name for point in rate.points for name in point.busy))
    if not names:
        return ""
    chart = stacked(
        names,
        [(point.seconds, [point.busy.get(name, 0.0) for name in names]) for point in rate.points],
        label="Busy workers by stage over time",
        axis="working time",
        x_text=duration,
    )
    return f'<div class="panel"><h3>Busy workers by stage</h3>{chart}</div>'


def _stages(stages: Mapping[str, Any]) -> str:
    seconds = {str(name): float(value) for name, value in stages.items() if isinstance(value, int | float)}
    whole = sum(seconds.values()) or 1.0
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{duration(value)}</td>'
        f'<td class="number">{100 * value / whole:.0f}%</td></tr>'
        for name, value in seconds.items()
    )
    return (
        '<div class="panel"><h3>Where the time went</h3><p class="quiet">Busy time summed over all workers, in the '
        'last run.</p><table><tr><th>stage</th><th class="number">time</th><th class="number">share</th></tr>'
        f"{rows}</table></div>"
    )


def _settings(facts: PageFacts) -> str:
    settings = (
        f"<details><summary>Settings of the run</summary><pre><code>{escape(facts.settings)}</code></pre></details>"
        if facts.settings
        else ""
    )
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.about)
    table = f'<table class="about">{rows}</table>' if rows else '<p class="quiet">No settings are recorded.</p>'
    return f'<section id="settings"><h2>Settings</h2><div class="panel">{table}{settings}</div></section>'
