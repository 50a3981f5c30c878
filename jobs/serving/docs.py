"""The endpoint's documentation page, from the same models as `openapi.json`. It loads nothing from elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pydantic

from jobs.serving.openapi import ERROR_RESPONSES, Alternative, Attention, Caption, Timing
from jobs.serving.requests import Options

_PAGE = Path(__file__).with_suffix(".html")

_EXAMPLES = """\
curl -F image=@photo.jpg -F beam_size=5 -F num_alternatives=3 {base}caption
curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' '{base}caption?beam_size=5'
base64 -w0 photo.jpg | jq -R '{{image: ., beam_size: 5}}' |
    curl --data-binary @- -H 'Content-Type: application/json' {base}caption"""

_ERROR_EXAMPLE = '{"error": {"class": "not_an_image", "message": "…"}}'


def docs_page(spec: Mapping[str, Any], base: str) -> str:
    """The page; `spec` is the content of `openapi.json`, `base` the server's address with a trailing slash."""
    sections = [
        "<h2><b>POST</b> /caption</h2>"
        "<p>Captions an image, sent as the file <code>image</code> of a form, as the body with options in the query, "
        "or as JSON with <code>image</code> or <code>images</code> (base64) or <code>urls</code> (if this server "
        "allows them). For several images the response has <code>results</code>, in the same order.</p>"
        f"<pre>{escape(_EXAMPLES.format(base=base))}</pre>",
        _section("Options", ("option", "type", ""), _fields(Options)),
        _section("Response for an image", ("field", "type", ""), _fields(Caption)),
        _section("Each of alternatives", ("field", "type", ""), _fields(Alternative)),
        _section("attention", ("field", "type", ""), _fields(Attention)),
        _section("timing", ("field", "type", ""), _fields(Timing)),
        _section(
            "Errors",
            ("status", ""),
            [(str(status), about["description"]) for status, about in ERROR_RESPONSES.items()],
            f"<p>An error has a class and a message: <code>{escape(_ERROR_EXAMPLE)}</code>. "
            "If it is temporary, <code>Retry-After</code> says when to try again.</p>",
        ),
        _section(
            "Other paths",
            ("path", ""),
            [(path, ways["get"]["summary"]) for path, ways in spec["paths"].items() if "get" in ways],
        ),
    ]
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(body="\n".join(sections))


def _section(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], before: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f'<h2>{escape(title)}</h2>{before}<div class="table"><table><tr>{head}</tr>{body}</table></div>'


def _fields(model: type[pydantic.BaseModel]) -> list[tuple[str, str, str]]:
    """Name, type and meaning of each field."""
    fields = model.model_json_schema()["properties"].items()
    return [(name, _type(about), about.get("description", "")) for name, about in fields]


def _type(about: Mapping[str, Any]) -> str:
    if "anyOf" in about:
        return " or ".join(kind for each in about["anyOf"] if (kind := _type(each)) != "null") or "null"
    if "$ref" in about:
        return "object"
    kind = str(about.get("type", ""))
    if kind == "array":
        return f"list of {_type(about['items'])}".replace("list of list of", "lists of")
    bounds = [
        f"{sign} {about[name]:g}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if name in about
    ]
    return " ".join([kind, *bounds[:1], *(f"and {bound}" for bound in bounds[1:])])
