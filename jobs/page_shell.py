"""The frame of a self-contained HTML page: markup, style, script and data in one file.

Its content security policy lets it load nothing and run no script but its own, which it names by hash.
"""

import base64
import hashlib
from html import escape as escape_markup
from pathlib import Path
from string import Template

from captioning.redaction import without_secrets

_TEMPLATE = Path(__file__).with_suffix(".html")


def escape(text: str) -> str:
    """`text` for a page: markup escaped, and credentials removed, since pages are sent around."""
    return escape_markup(without_secrets(text))


def render_page(title: str, body: str, *, script: Path, data: str = "") -> bytes:
    """The page: `body` is markup, `script` a file of JavaScript, `data` its input from `reporting.rows.pack`."""
    code = script.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.substitute(title=escape(title), body=body, policy=f"'sha256-{digest}'", data=data, script=code)
    # Escaped text may still contain what UTF-8 cannot encode: a name's stray bytes.
    return page.encode("utf-8", "replace")


def command_block(command: str) -> str:
    """A command with a button that copies it."""
    return (
        f'<div class="command"><code>{escape(command)}</code>'
        '<button type="button" data-copy hidden aria-label="Copy the command">Copy</button></div>'
    )
