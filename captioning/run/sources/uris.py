"""Resolves the paths and URIs of lists and columns to locations."""

import os
import re
from urllib.parse import unquote, urlsplit

from captioning.errors import InputError, UsageError
from captioning.storage import Location, escape_name
from captioning.web_files import shown

_WEB = re.compile(r"^https?://", re.IGNORECASE)
_FILE = re.compile(r"^(?:file|local)://(?:localhost)?(?=/)", re.IGNORECASE)
_HERE = re.compile(r"^(?:\./+)+")


def locate(text: str, folder: Location, *, where: str) -> Location:
    """The location of `text`: a URI, or a path, relative to `folder` unless absolute.

    `where` describes the place of the text in error messages. Raises `InputError` for a web address unless
    `storage.allow_http` is set, and for one with a password, for the table shows URIs.
    """
    if _WEB.match(text):
        _check_web(text, folder, where)
    try:
        if "://" not in text and not text.startswith(("/", "~")):
            return folder / _HERE.sub("", text)
        if _FILE.match(text):
            text = _file(_FILE.sub("", text))
        return Location.parse(text, folder.settings)
    except UsageError as error:
        raise InputError(f"In {where}: {error}") from error


def _file(path: str) -> str:
    """The path of a file URI. Some programs percent-encode these and others do not: take the one that exists."""
    plain = unquote(path, errors="surrogateescape")
    return plain if plain != path and not os.path.lexists(path) and os.path.lexists(plain) else path


def check_input(location: Location) -> None:
    """Raise `InputError` for an INPUT that is a web address, which cannot be listed."""
    if _WEB.match(location.path):
        raise InputError(
            f"INPUT {shown(location.path)} is a web address. Put web addresses into a text list, one on each "
            "line, and pass that, with --set storage.allow_http=true"
        )


def _check_web(text: str, folder: Location, where: str) -> None:
    try:
        parts = urlsplit(text)
        host, secret = parts.hostname, parts.username is not None or parts.password is not None
    except ValueError as error:
        raise InputError(f"In {where}: the web address is not valid ({error}).") from None
    if secret:
        raise InputError(
            f"In {where}: the web address contains a user name or a password, which the table would show. Remove it."
        )
    if not folder.settings.allow_http:
        raise InputError(
            f"In {where}: web addresses ({escape_name(parts.scheme)}://{escape_name(host or '')}/…) are fetched only "
            "if that is allowed: pass --set storage.allow_http=true if you trust the list."
        )
