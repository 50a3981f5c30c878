"""A page that needs nothing else: markup, style, script and data in one HTML file.

Nothing can be loaded into it, and no script runs in it but its own: the page's policy names that
script by its hash. Knows nothing of what a page shows.
"""

import base64
import hashlib
from html import escape as escape_markup
from pathlib import Path
from string import Template

from captioning.redaction import without_secrets

_TEMPLATE = Path(__file__).with_suffix(".html")


def escape(text: str) -> str:
    """`text` for a page: no markup, and no credentials, since a page is sent around."""
    return escape_markup(without_secrets(text))


def shell(title: str, body: str, *, script: Path, data: str = "") -> bytes:
    """The page: `body` is markup, `script` a file of JavaScript, `data` what `reporting.rows.pack` makes for it."""
    code = script.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.substitute(title=escape(title), body=body, policy=f"'sha256-{digest}'", data=data, script=code)
    # What was escaped may still hold what UTF-8 cannot: a name's stray bytes.
    return page.encode("utf-8", "replace")


def copied(command: str) -> str:
    """A command to copy, with a button that does."""
    return (
        f'<div class="command"><code>{escape(command)}</code>'
        '<button type="button" data-copy hidden aria-label="Copy the command">Copy</button></div>'
    )
