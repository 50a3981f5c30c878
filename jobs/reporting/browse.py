"""The report's sections to browse: photos with their captions, and rows to search and filter.

Photos are markup, so that they show without a script; rows are data, which the page's script shows.
"""

from collections.abc import Mapping, Sequence
from html import escape as escape_markup

import pyarrow as pa

from jobs.page_shell import escape
from jobs.reporting.photos import Thumbnail
from jobs.reporting.rows import COLUMNS, pack, row_columns
from jobs.reporting.table import PhotoRow, TableFacts

#: The order of the rows: value and name.
_ORDERS = (
    ("", "as in the archive"),
    ("score-up", "lowest score first"),
    ("score-down", "highest score first"),
    ("words-up", "shortest first"),
    ("words-down", "longest first"),
    ("id", "by name"),
)


def browse(table: TableFacts, thumbnails: Mapping[str, Thumbnail]) -> str:
    """The section of photos and rows, and that of the lowest scores."""
    shown = len(table.sample)
    if table.captioned:
        which = "All of them." if shown == table.captioned else f"{shown:,} of {table.captioned:,}, drawn at random."
        score = "The score is the mean log-probability per token: the closer to 0, the more confident the model."
    else:
        which, score = "No image has a caption.", ""
    photos = "".join(_photo(row, thumbnails.get(row.image_id), number) for number, row in enumerate(table.sample))
    text = (
        f'<section id="photos"><h2>Photos</h2><p class="quiet">{which} {score}</p>{_filters(table)}'
        f'{_bar(table)}<div class="gallery" id="gallery">{photos}</div>{_LIST}</section>'
    )
    if table.least_confident:
        photos = "".join(_photo(row, thumbnails.get(row.image_id)) for row in table.least_confident)
        text += (
            '<section id="least-sure"><h2>Least confident</h2><p class="quiet">The lowest scores: look here for '
            f'images unlike those the model was trained on.</p><div class="gallery">{photos}</div></section>'
        )
    return text + _card()


def browse_data(table: TableFacts) -> str:
    """The rows for the page's script, packed: `row_columns`, and in `photos` each photo's row number, in order."""
    rows = _with_photos(table.searched, table.sample)
    places = {image_id: place for place, image_id in enumerate(rows["image_id"].to_pylist())}
    return pack(row_columns(rows) | {"photos": [places[photo.image_id] for photo in table.sample], "rows": table.rows})


def _with_photos(rows: pa.Table, photos: Sequence[PhotoRow]) -> pa.Table:
    """The rows, followed by those of photos that are not among them."""
    there = set(rows["image_id"].to_pylist())
    more = [
        {"image_id": row.image_id, "caption": row.caption, "score": row.score, "status": "ok"}
        for row in photos
        if row.image_id not in there
    ]
    if not more:
        return rows
    columns = {name: [row.get(name) for row in more] for name in COLUMNS}
    return pa.concat_tables([rows, pa.Table.from_pydict(columns, schema=rows.schema)])


def _filters(table: TableFacts) -> str:
    kinds = [("", f"all {table.rows:,}")]
    if table.errors:
        kinds += [("ok", f"captioned: {table.captioned:,}"), ("error", f"errors: {table.failed:,}")]
        kinds += [(f"class {error.name}", f"error {error.name}: {error.count:,}") for error in table.errors]
    return (
        '<form class="filters" id="filters" role="search" hidden>'
        '<label class="wide">Search<input type="search" id="find" autocomplete="off" spellcheck="false" '
        'placeholder="dog beach -red" aria-describedby="hint"></label>'
        f'<label>Rows<select id="kind">{_options(kinds)}</select></label>'
        f"{_range('score', 'Score', '0.1')}{_range('words', 'Words', '1')}"
        f'<label>Order<select id="order">{_options(_ORDERS)}</select></label>'
        '<button type="reset">Clear</button>'
        '<p class="quiet" id="hint">Matches word beginnings in captions and names; <kbd>-red</kbd> excludes. '
        '<span class="keyboard">Keys: <kbd>/</kbd> search, arrows to move, <kbd>Enter</kbd> to open.</span></p></form>'
    )


def _options(options: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<option value="{escape(value)}">{escape(name)}</option>' for value, name in options)


def _range(name: str, title: str, step: str) -> str:
    return (
        f'<fieldset><legend>{title}</legend><input type="number" step="{step}" id="{name}-from" placeholder="from" '
        f'aria-label="{title} from"><input type="number" step="{step}" id="{name}-to" placeholder="to" '
        f'aria-label="{title} to"></fieldset>'
    )


#: Filled by the script with the matching rows.
_LIST = (
    '<div id="list" class="panel" hidden><table><thead><tr><th></th><th>caption</th><th>name</th>'
    '<th class="number">score</th><th class="number">words</th></tr></thead><tbody></tbody></table></div>'
    '<noscript><p class="quiet">Search and filters need JavaScript, which is disabled here.</p></noscript>'
)


def _bar(table: TableFacts) -> str:
    """The bar above the results: views, count and pages."""
    searched = table.searched.num_rows
    note = ""
    if searched < table.rows:
        note = (
            f'<p class="quiet">Search covers {searched:,} of the {table.rows:,} rows, drawn at random; '
            "figures and charts cover all.</p>"
        )
    return (
        f'{note}<div id="bar" class="bar" hidden><div class="views" role="group" aria-label="View">'
        '<button type="button" id="as-photos" aria-pressed="true">Photos</button>'
        '<button type="button" id="as-list" aria-pressed="false">All rows</button></div>'
        '<p id="count" role="status">Loading…</p><div class="pages" id="pages" hidden>'
        '<button type="button" id="back" aria-label="Previous page">‹</button><span id="page"></span>'
        '<button type="button" id="on" aria-label="Next page">›</button></div></div>'
    )


def _card() -> str:
    """The dialog that shows one row enlarged."""
    return (
        '<dialog id="card" aria-labelledby="card-text"><div class="picture"><p></p></div>'
        '<div class="card-text"><p id="card-text"></p><dl></dl><div class="others"></div><p class="card-buttons">'
        '<button type="button" id="card-back">‹ Previous</button><button type="button" id="card-on">Next ›</button>'
        '<button type="button" id="card-close">Close</button></p></div></dialog>'
    )


def _photo(row: PhotoRow, thumbnail: Thumbnail | None, number: int | None = None) -> str:
    caption = escape(row.caption) or '<span class="quiet">(empty caption)</span>'
    place = "" if number is None else f' data-photo="{number}"'
    others = ""
    if row.alternatives:
        items = "".join(f"<li>{escape(text)} <small>{score:.2f}</small></li>" for text, score in row.alternatives)
        others = f"<details><summary>{len(row.alternatives)} more</summary><ul>{items}</ul></details>"
    return (
        f"<figure{place}>{picture(row.caption, thumbnail)}<figcaption><p>{caption}</p>"
        f'<small title="{escape(row.uri)}">{escape(row.image_id)}</small>'
        f'<small class="numbers">score {row.score:.2f} · {row.width} × {row.height}</small>{others}'
        "</figcaption></figure>"
    )


def picture(alt: str, thumbnail: Thumbnail | None) -> str:
    """A thumbnail, or the reason why there is none."""
    if thumbnail is None or not thumbnail.data_uri:
        reason = escape(thumbnail.reason if thumbnail else "")
        return f'<div class="picture"><p>No thumbnail. {reason}</p></div>'
    return (
        f'<div class="picture"><img src="{escape_markup(thumbnail.data_uri)}" width="{thumbnail.width}" '
        f'height="{thumbnail.height}" loading="lazy" decoding="async" alt="{escape(alt)}"></div>'
    )
