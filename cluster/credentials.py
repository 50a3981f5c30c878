"""The credentials for a cluster: Ray's token, from the places where Ray looks, and headers for proxies.

    credentials = find_credentials()        credentials.headers()  →  {"Authorization": "Bearer …"}

The token never appears in a message or a `repr`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from captioning.errors import UsageError

#: Extra headers of every request, as JSON; also read by Ray's own `ray job`.
HEADERS_VARIABLE = "RAY_JOB_HEADERS"
_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"


@dataclass(frozen=True)
class Credentials:
    """What is sent with every request. `source` says where the token came from; None without a token."""

    token: str | None = field(default=None, repr=False)
    source: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict, repr=False)

    def headers(self) -> dict[str, str]:
        """The headers of every request. If `extra` has an `Authorization`, the token goes into Ray's other header."""
        headers = dict(self.extra)
        if self.token is not None:
            taken = any(name.lower() == "authorization" for name in headers)
            headers["X-Ray-Authorization" if taken else "Authorization"] = f"Bearer {self.token}"
        return headers

    def secrets(self) -> tuple[str, ...]:
        """Texts that must never be shown."""
        return tuple(text for text in (self.token, *self.extra.values()) if text)


def find_credentials() -> Credentials:
    """The token of RAY_AUTH_TOKEN, of the file RAY_AUTH_TOKEN_PATH, or of `~/.ray/auth_token`, in Ray's order.

    It is used unless RAY_AUTH_MODE says otherwise. Raises `UsageError` for a token that cannot be read or sent.
    """
    extra = _extra_headers()
    mode = os.environ.get("RAY_AUTH_MODE", "").strip().lower()
    if mode and mode != "token":
        return Credentials(extra=extra)
    token, source = _find_token()
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(f"The token from {source} cannot be sent: it contains spaces or other invalid characters.")
    if token is None and mode == "token":
        raise UsageError(
            "RAY_AUTH_MODE is token, but no token was found: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with "
            f"it, or put it into {_default_path()}."
        )
    return Credentials(token, source, extra)


def _find_token() -> tuple[str | None, str | None]:
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if token:
        return token, "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if path:
        # As in Ray: fail here rather than use a token other than the intended one.
        token = _read(Path(path).expanduser())
        if not token:
            raise UsageError(f"RAY_AUTH_TOKEN_PATH is {path}, but no token can be read from it. Correct or unset it.")
        return token, f"the file {path}"
    paths = [_default_path()]
    if os.environ.get("RAY_ENABLE_K8S_TOKEN_AUTH", "").lower() in ("1", "true"):
        paths.insert(0, Path(_SERVICE_ACCOUNT))
    for place in paths:
        token = _read(place)
        if token:
            return token, f"the file {place}"
    return None, None


def _default_path() -> Path:
    return Path(os.path.expanduser("~")) / ".ray" / "auth_token"


def _read(path: Path) -> str:
    """The first line of a file, or nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""


def _extra_headers() -> dict[str, str]:
    text = os.environ.get(HEADERS_VARIABLE, "").strip()
    if not text:
        return {}
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict) or not all(_is_header(name, value) for name, value in given.items()):
        raise UsageError(f'{HEADERS_VARIABLE} must be a JSON object of strings, such as {{"X-Name": "value"}}.')
    return {str(name): str(value) for name, value in given.items()}


def _is_header(name: object, value: object) -> bool:
    return all(isinstance(text, str) and text.strip() == text and text.isprintable() for text in (name, value))
