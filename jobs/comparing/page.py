"""The comparison of two runs as one self-contained HTML page.

Everything that comes from an archive or a model is escaped.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.comparing.count import OVERLAP_BINS, CaptionPair, Side
from jobs.page_shell import escape, render_page
from jobs.progress import counted, duration, percent
from jobs.reporting.browse import picture
from jobs.reporting.charts import histogram
from jobs.reporting.photos import Thumbnail
from jobs.reporting.table import Histogram

if TYPE_CHECKING:
    from jobs.comparing.run import Comparison

_SCRIPT = Path(__file__).with_suffix(".js")


def compare_page(found: "Comparison", thumbnails: Mapping[str, Thumbnail]) -> bytes:
    """The whole page."""
    names = [run.name for run in found.runs]
    sections = [_head(found), _figures(found), _pairs(found, thumbnails), _agreement(found), _errors(found)]
    sections += [_alone(found), _settings(found)]
    return render_page(f"{names[0]} and {names[1]} compared", "\n".join(filter(None, sections)), script=_SCRIPT)


def _head(found: "Comparison") -> str:
    names = [escape(run.name) for run in found.runs]
    links = [("photos", "Disagreements"), ("agreement", "Agreement")]
    links += [("errors", "Errors")] if found.counts.error_pairs else []
    links += [("settings", "Settings and speed")]
    nav = "".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in links)
    runs = "<br>".join(f"{escape(str(run.layout.root))} · {escape(run.model)}" for run in found.runs)
    return f'<header><h1>{names[0]} and {names[1]} compared</h1><p class="quiet">{runs}</p><nav>{nav}</nav></header>'


def _figures(found: "Comparison") -> str:
    counts = found.counts
    figures = [("images in both", f"{counts.shared:,}")]
    if counts.captioned:
        share = percent(counts.identical, counts.captioned)
        figures.append(("identical captions", f"{counts.identical:,} <small>{share}</small>"))
        figures.append(("different captions", f"{counts.different:,}"))
        figures.append(("mean token overlap", f"{counts.mean_overlap:.3f}"))
        for side, run in zip(counts.sides, found.runs, strict=True):
            if side.cider_d is not None:
                figures.append((f"CIDEr-D of {escape(run.name)}", f"{side.cider_d:.1f}"))
    figures.append(("error rows that differ", f"{counts.errors_differ:,}"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    of = (
        f" It is computed on {counts.cider_images:,} images drawn at random."
        if counts.cider_images < counts.captioned
        else ""
    )
    return (
        f'<dl class="figures">{cells}</dl><p class="quiet">Token overlap is the share of tokens that two captions have '
        "in common, 0 to 1 (Dice). CIDEr-D takes the other run's captions as the only references: it measures how "
        f"similar the runs are, not how good. Papers' scores against human captions are not comparable.{of}</p>"
    )


def _pairs(found: "Comparison", thumbnails: Mapping[str, Thumbnail]) -> str:
    pairs = found.counts.widest
    if not pairs:
        return (
            '<section id="photos"><h2>Widest disagreements</h2><p class="quiet">There are none to show.</p></section>'
        )
    cards = "".join(_pair(found, pair, thumbnails.get(pair.image_id)) for pair in pairs)
    return (
        f'<section id="photos"><h2>Widest disagreements</h2><p class="quiet">The {counted(len(pairs), "photo")} whose '
        "captions share the fewest words, ignoring stop words; ties are sorted by how confident both captioners are. "
        "Highlighted words are in one caption only.</p>"
        '<form class="filters" id="filters" role="search" hidden><label class="wide">Search<input type="search" '
        'id="find" autocomplete="off" spellcheck="false" placeholder="words of the captions or the name"></label>'
        '<p id="count" class="quiet" role="status"></p></form>'
        f'<div class="gallery" id="gallery">{cards}</div></section>'
    )


def _pair(found: "Comparison", pair: CaptionPair, thumbnail: Thumbnail | None) -> str:
    sides = "".join(
        f"<dt>{escape(run.name)} · {score:.2f}</dt><dd>{_marked(text, against)}</dd>"
        for run, text, against, score in zip(
            found.runs, pair.captions, reversed(pair.captions), pair.scores, strict=True
        )
    )
    return (
        f'<figure>{picture(pair.captions[0], thumbnail)}<figcaption class="pair"><dl>{sides}</dl>'
        f'<small title="{escape(pair.uri)}">{escape(pair.image_id)}</small>'
        f'<small class="numbers">overlap {pair.overlap:.2f}</small></figcaption></figure>'
    )


def _marked(text: str, other: str) -> str:
    """The caption, escaped, with the words that the other one lacks marked."""
    there = {_bare(word) for word in other.split()}
    if not text.split():
        return '<span class="quiet">(empty caption)</span>'
    words = [f"<ins>{escape(word)}</ins>" if _bare(word) not in there else escape(word) for word in text.split()]
    return " ".join(words).replace("</ins> <ins>", " ")


def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word.lower())


def _agreement(found: "Comparison") -> str:
    counts = found.counts
    if not counts.captioned:
        return ""
    chart = histogram(
        Histogram(0.0, 1 / OVERLAP_BINS, counts.overlaps, counts.mean_overlap or 0.0),
        label="Histogram of token overlaps",
        axis="token overlap of the two captions",
        bin_text=lambda start, stop: f"{start:.2f} to {stop:.2f}",
    )
    same = f"{counts.same_tokens:,} of {counts.captioned:,} are the same except for case and punctuation."
    words = "".join(
        f"<div><h3>Used more by {escape(run.name)}</h3>{_words(side)}</div>"
        for run, side in zip(found.runs, counts.sides, strict=True)
    )
    means = "".join(
        f'<tr><td>{escape(run.name)}</td><td class="number">{side.mean_words:.1f}</td>'
        f'<td class="number">{side.mean_score:.2f}</td></tr>'
        for run, side in zip(found.runs, counts.sides, strict=True)
    )
    return (
        '<section id="agreement"><h2>Agreement</h2><div class="panels"><div class="panel stack"><div><h3>Overlap</h3>'
        f'<p class="quiet">{same}</p>{chart}</div><div><h3>Captions</h3><table><tr><th>run</th><th class="number">words'
        f'</th><th class="number">mean score</th></tr>{means}</table></div></div>'
        f'<div class="panel stack">{words}</div></div></section>'
    )


def _words(side: Side) -> str:
    if not side.words:
        return '<p class="quiet">No words.</p>'
    items = "".join(f"<li>{escape(word)} <small>{here:,} : {there:,}</small></li>" for word, here, there in side.words)
    return f'<p class="quiet">Images with the word in this run : in the other.</p><ul class="words">{items}</ul>'


def _errors(found: "Comparison") -> str:
    if not found.counts.error_pairs:
        return ""
    rows = "".join(
        f"<tr><td>{_outcome(pair.outcomes[0])}</td><td>{_outcome(pair.outcomes[1])}</td>"
        f'<td class="number">{pair.count:,}</td><td>'
        + "<br>".join(f"<code>{escape(image_id)}</code>" for image_id in pair.examples)
        + (f"<br>and {pair.count - len(pair.examples):,} more" if pair.count > len(pair.examples) else "")
        + "</td></tr>"
        for pair in found.counts.error_pairs
    )
    names = "".join(f"<th>{escape(run.name)}</th>" for run in found.runs)
    return (
        f'<section id="errors"><h2>Errors</h2><p class="quiet">{counted(found.counts.errors_differ, "image")} failed '
        'in only one run, or with different errors.</p><div class="panel scroll"><table>'
        f'<tr>{names}<th class="number">images</th><th>examples</th></tr>{rows}</table></div></section>'
    )


def _outcome(name: str) -> str:
    return "captioned" if name == "ok" else f'<span class="bad">{escape(name)}</span>'


def _alone(found: "Comparison") -> str:
    panels = "".join(
        f'<div class="panel"><h3>Only in {escape(run.name)}: {side.only:,}</h3><p>'
        + "<br>".join(f"<code>{escape(image_id)}</code>" for image_id in side.only_examples)
        + (f"<br>and {side.only - len(side.only_examples):,} more" if side.only > len(side.only_examples) else "")
        + "</p></div>"
        for run, side in zip(found.runs, found.counts.sides, strict=True)
        if side.only
    )
    return f'<section id="alone"><h2>In one run only</h2><div class="panels">{panels}</div></section>' if panels else ""


def _settings(found: "Comparison") -> str:
    rows = [("images/s", *(f"{run.images_per_second:,.1f}" if run.images_per_second else "?" for run in found.runs))]
    rows.append(
        ("duration of the last run", *(duration(run.seconds) if run.seconds is not None else "?" for run in found.runs))
    )
    rows.append(("fingerprint", *(run.record.fingerprint for run in found.runs)))
    rows += list(found.settings)
    lines = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(here)}</td><td>{escape(there)}</td></tr>" for key, here, there in rows
    )
    names = "".join(f"<th>{escape(run.name)}</th>" for run in found.runs)
    return (
        '<section id="settings"><h2>Settings and speed</h2><p class="quiet">Only what differs between '
        f'the two.</p><div class="panel scroll"><table class="about wide"><tr><th></th>{names}</tr>{lines}</table>'
        "</div></section>"
    )
