"""The report as one HTML page that needs nothing else: no script, no font, no file beside it.

Turns facts into text. Whatever comes from an archive or a model is escaped; the page's own
policy forbids it to load anything. Knows nothing of where the facts come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape as escape_markup
from pathlib import Path
from string import Template
from typing import Any

from captioning.redaction import without_secrets
from jobs.progress import duration
from jobs.report_charts import curve, histogram
from jobs.report_photos import Thumbnail
from jobs.report_table import ErrorClass, Frequent, PhotoRow, TableFacts
from jobs.report_times import Rate

_TEMPLATE = Path(__file__).with_name("report_page.html")


@dataclass(frozen=True)
class PageFacts:
    """Everything that the page shows."""

    output: str
    table: TableFacts
    thumbnails: Mapping[str, Thumbnail]
    rate: Rate
    summary: Mapping[str, Any]
    """`summary.json`, empty when the run has none yet."""
    settings: str
    """The run's settings as YAML, empty when not known."""
    versions: Mapping[str, str]
    complete: bool
    """Whether every indexed image has its row."""


def escape(text: str) -> str:
    """`text` for the page: no markup, and no credentials, since a report is sent around."""
    return escape_markup(without_secrets(text))


def page(facts: PageFacts) -> str:
    """The whole page."""
    name = facts.output.rstrip("/").rpartition("/")[2] or facts.output
    sections = [_head(facts, name), _figures(facts), _gallery(facts), _errors(facts), _distributions(facts)]
    sections += [_frequent(facts), _speed(facts), _settings(facts)]
    body = "\n".join(section for section in sections if section)
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    # What was escaped may still hold what UTF-8 cannot: a name's stray bytes.
    return template.substitute(title=escape(f"Captions of {name}"), body=body).encode("utf-8", "replace").decode()


def _head(facts: PageFacts, name: str) -> str:
    links = [("photos", "Photos")]
    if facts.table.errors:
        links.append(("errors", "Errors"))
    links += [("numbers", "Scores and lengths"), ("frequent", "What is said most"), ("speed", "Speed")]
    models = ", ".join(facts.table.models) or "no model"
    unfinished = "" if facts.complete else '<p class="bad">This run is not finished: the page shows what is done.</p>'
    return (
        f'<header><h1>Captions of {escape(name)}</h1><p class="quiet">{escape(facts.output)} · {escape(models)}</p>'
        f"{unfinished}<nav>" + "".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in links) + "</nav></header>"
    )


def _figures(facts: PageFacts) -> str:
    table = facts.table
    figures = [("images", f"{table.rows:,}"), ("captioned", f"{table.captioned:,}")]
    share = f" ({100 * table.failed / table.rows:.2g}%)" if table.failed else ""
    figures.append(("errors", f"{table.failed:,}{share}"))
    if table.captioned:
        distinct = f"{'' if table.captions.exact else 'over '}{table.captions.distinct:,}"
        figures.append(("different captions", distinct))
        figures.append(("mean score", f"{table.scores.mean:.2f}"))
        figures.append(("words a caption", f"{table.lengths.mean:.1f}"))
    rate = facts.summary.get("steady_images_per_second") or facts.summary.get("images_per_second") or facts.rate.mean
    if isinstance(rate, int | float) and rate > 0:
        figures.append(("images a second", f"{rate:,.3g}" if rate < 1000 else f"{rate:,.0f}"))
    return '<dl class="figures">' + "".join(f"<div><dt>{n}</dt><dd>{v}</dd></div>" for n, v in figures) + "</dl>"


def _gallery(facts: PageFacts) -> str:
    table = facts.table
    if not table.captioned:
        return '<section id="photos"><h2>Photos</h2><p class="quiet">No image has a caption.</p></section>'
    shown = len(table.sample)
    which = "All of them." if shown == table.captioned else f"{shown:,} of {table.captioned:,}, drawn at random."
    photos = "".join(_photo(row, facts.thumbnails.get(row.image_id)) for row in table.sample)
    text = (
        f'<section id="photos"><h2>Photos</h2><p class="quiet">{which} The score is the mean log-probability a token: '
        f'the nearer to 0, the surer the model.</p><div class="gallery">{photos}</div></section>'
    )
    if table.least_sure:
        photos = "".join(_photo(row, facts.thumbnails.get(row.image_id)) for row in table.least_sure)
        text += (
            '<section id="least-sure"><h2>Least sure</h2><p class="quiet">The lowest scores of all: look here for '
            f'pictures that the model does not know.</p><div class="gallery">{photos}</div></section>'
        )
    return text


def _photo(row: PhotoRow, thumbnail: Thumbnail | None) -> str:
    if thumbnail is not None and thumbnail.data_uri:
        picture = (
            f'<img src="{escape_markup(thumbnail.data_uri)}" width="{thumbnail.width}" height="{thumbnail.height}" '
            f'loading="lazy" alt="{escape(row.caption)}">'
        )
    else:
        picture = f"<p>No thumbnail. {escape(thumbnail.reason if thumbnail else '')}</p>"
    others = ""
    if row.alternatives:
        items = "".join(f"<li>{escape(text)} <small>{score:.2f}</small></li>" for text, score in row.alternatives)
        others = f"<details><summary>{len(row.alternatives)} more</summary><ul>{items}</ul></details>"
    caption = escape(row.caption) or '<span class="quiet">(empty caption)</span>'
    return (
        f'<figure><div class="picture">{picture}</div><figcaption><p>{caption}</p>'
        f'<small title="{escape(row.uri)}">{escape(row.image_id)}</small>'
        f"<small>score {row.score:.2f} · {row.width} × {row.height}</small>{others}</figcaption></figure>"
    )


def _errors(facts: PageFacts) -> str:
    if not facts.table.errors:
        return ""
    classes = "".join(_error_class(error) for error in facts.table.errors)
    return (
        f'<section id="errors"><h2>Errors</h2><p class="quiet">{facts.table.failed:,} of {facts.table.rows:,} images '
        f'have no caption. Their rows say why.</p><div class="panels">{classes}</div></section>'
    )


def _error_class(error: ErrorClass) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(image_id)}</code></td><td>{escape(message)}</td></tr>"
        for image_id, message in error.examples
    )
    more = error.count - len(error.examples)
    rest = f'<p class="quiet">and {more:,} more</p>' if more else ""
    return (
        f'<div class="panel"><h3><span class="bad">{escape(error.name)}</span>: {error.count:,}</h3>'
        f'<div class="scroll"><table><tr><th>image</th><th>reason</th></tr>{rows}</table></div>{rest}</div>'
    )


def _distributions(facts: PageFacts) -> str:
    scores = histogram(
        facts.table.scores,
        label="Histogram of scores",
        axis="score (mean log-probability a token)",
        bin_text=lambda start, stop: f"{start:.2f} to {stop:.2f}",
    )
    lengths = histogram(
        facts.table.lengths,
        label="Histogram of caption lengths",
        axis="words a caption",
        bin_text=lambda start, stop: (
            f"{start:.0f} words" if stop - start == 1 else f"{start:.0f} to {stop - 1:.0f} words"
        ),
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
    items = "".join(f"<li>{escape(word)} <small>{count:,}</small></li>" for word, count in words.top)
    return (
        '<section id="frequent"><h2>What is said most</h2><div class="panels"><div class="panel"><h3>Captions</h3>'
        f'<p class="quiet">{_repeats(captions, facts.table.captioned)}</p><table>'
        f'<tr><th>caption</th><th class="number">images</th></tr>{rows}</table></div>'
        '<div class="panel"><h3>Words</h3><p class="quiet">Small words are left out.</p>'
        f'<ul class="words">{items}</ul></div></div></section>'
    )


def _repeats(captions: Frequent, total: int) -> str:
    if not captions.exact:
        return f"Over {captions.distinct:,} different ones; counts of rare ones may be too low."
    return f"{captions.distinct:,} different ones for {total:,} images ({100 * captions.distinct / total:.0f}%)."


def _speed(facts: PageFacts) -> str:
    chart = curve(
        [(point.seconds, point.images_per_second) for point in facts.rate.points],
        label="Images a second over time",
        axis="working time",
        x_text=duration,
    )
    note = ""
    if facts.rate.pauses:
        times = "once" if facts.rate.pauses == 1 else f"{facts.rate.pauses} times"
        note = f'<p class="quiet">The run stood still {times}; that time is left out.</p>'
    stages = facts.summary.get("stages")
    table = _stages(stages) if isinstance(stages, Mapping) and stages else ""
    panel = f'<div class="panel"><h3>Images a second</h3>{note}{chart}</div>'
    return f'<section id="speed"><h2>Speed</h2><div class="panels">{panel}{table}</div></section>'


def _stages(stages: Mapping[str, Any]) -> str:
    seconds = {str(name): float(value) for name, value in stages.items() if isinstance(value, int | float)}
    whole = sum(seconds.values()) or 1.0
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{duration(value)}</td>'
        f'<td class="number">{100 * value / whole:.0f}%</td></tr>'
        for name, value in seconds.items()
    )
    return (
        '<div class="panel"><h3>Where the time went</h3><p class="quiet">Busy seconds of all workers together, in the '
        'last run.</p><table><tr><th>stage</th><th class="number">time</th><th class="number">share</th></tr>'
        f"{rows}</table></div>"
    )


def _settings(facts: PageFacts) -> str:
    settings = (
        f"<details><summary>Settings of the run</summary><pre><code>{escape(facts.settings)}</code></pre></details>"
        if facts.settings
        else ""
    )
    versions = _join([f"{name} {version}" for name, version in facts.versions.items()])
    return f"<footer>{settings}<p>{escape(versions)}</p></footer>"


def _join(texts: Sequence[str]) -> str:
    return " · ".join(texts)
