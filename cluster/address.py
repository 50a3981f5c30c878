"""The address of a cluster's Jobs API, from `--address` or the environment. Nothing is contacted."""

import os
import re
from urllib.parse import urlsplit

from captioning.errors import UsageError

DEFAULT = "http://127.0.0.1:8265"
#: Read in this order, after `--address`.
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
#: The ports of Ray's dashboard, which also serves the Jobs API, and of its control store (GCS), which does not.
_DASHBOARD, _CONTROL = 8265, 6379


def find_address(given: str | None) -> str:
    """`http://HOST:PORT` of the cluster: as given, else from the environment, else this machine.

    On a node, RAY_ADDRESS names the control store; the Jobs API is then assumed at the dashboard's
    port of the same host. Raises `UsageError`.
    """
    if given is not None:
        return normalise(given, "--address")
    for name in VARIABLES:
        value = os.environ.get(name, "").strip()
        if value:
            return normalise(value, name)
    return DEFAULT


def normalise(text: str, where: str) -> str:
    """Normalise an address to `http(s)://HOST:PORT[/PATH]`. Raises `UsageError`, which names `where` it was given."""
    text = text.strip()
    if text in ("auto", "local"):
        return DEFAULT
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not re.fullmatch(r"[A-Za-z0-9._:\-]+", host) or parts.query or parts.fragment:
        raise UsageError(
            f"{where} {text} is not the address of a cluster: use that of the head's dashboard, such as http://HOST:8265."
        )
    path = parts.path.rstrip("/")
    shown = f"[{host}]" if ":" in host else host
    if parts.scheme == "ray":
        raise UsageError(
            f"{where} {text} is an address of Ray Client. Jobs are submitted over HTTP: use "
            f"http://{shown}:{_DASHBOARD}, or wherever the head's dashboard is."
        )
    if parts.scheme not in ("http", "https"):
        raise UsageError(f"{where} {text} must begin with http:// or https://, such as http://{shown}:{_DASHBOARD}.")
    if port == _CONTROL or (port is None and parts.scheme == "http" and not path):
        port = _DASHBOARD
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{login}{shown}{'' if port is None else f':{port}'}{path}"
