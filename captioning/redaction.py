"""Removes secrets (keys, signatures, passwords) from text that is shown or stored.

    without_secrets("s3://key:secret@bucket/a")      "s3://***@bucket/a"
    redacted({"reason": …})                          the same for every string in plain values

Used for messages, error rows, `run.json`, the event log and the report. Not for the index and the
table's `uri` and `image_id`: they must lead back to the image, so an address signed in its query is
stored as given (one with a password is refused when it is listed).
"""

import os
import re
from collections.abc import Mapping
from typing import Any

_SECRETS = re.compile(
    r"(?i)((?<![a-z0-9_\-])(?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|GoogleAccessId"
    r"|Signature|sig|(?:access_|auth_|security_)?token|(?:aws_)?secret(?:_access_key|_key)?|api_?key|password|passwd)=)"
    r"[^&\s\"'#]+"
    r"|(?<=://)[^/\s@?#]+(?=@)"
)
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


def without_secrets(text: str) -> str:
    """`text` without signatures, passwords and the credentials of the environment."""
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        # A short one could be part of ordinary words.
        if len(value) >= 12:
            text = text.replace(value, "***")
    return _SECRETS.sub(lambda match: f"{match[1] or ''}***", text)


def redacted(value: Any) -> Any:
    """Plain values (mappings, lists, strings, numbers) with every string `without_secrets`."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {key: redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return value
