"""Checks of storage: whether an archive can be listed and read, and a run be written, and with which credentials.

Findings say where credentials come from, never what they are.
"""

import itertools
import os
import secrets
import time
from collections.abc import Iterator

from captioning.errors import CaptioningError, StorageError
from captioning.retries import INTERACTIVE, retry_policy
from captioning.run.fetch import fetch
from captioning.run.sources import Entry, open_sources
from captioning.storage import Location, StorageSettings
from jobs.diagnosis.all_checks import Finding
from jobs.progress import counted

#: Most images to list, and the time limit for that, in seconds.
_LISTED = 1000
_SECONDS = 10.0


def check_input(text: str, storage: StorageSettings) -> Iterator[Finding]:
    """Whether an INPUT can be listed and its first image read."""
    where = credentials(text, storage)
    began = time.monotonic()
    try:
        with retry_policy(INTERACTIVE):
            [source] = open_sources([text], storage)
            entries: list[Entry] = []
            for entry in itertools.islice(source.entries(), _LISTED):
                entries.append(entry)
                if time.monotonic() - began > _SECONDS:
                    break
            listed = time.monotonic() - began
            if not entries:
                todo = "Pass a folder, tar, table or list that contains images."
                yield Finding("input", "fail", f"{text} can be listed, but contains no images{where}", todo)
                return
            began = time.monotonic()
            size = len(fetch(entries[0], storage))
    except CaptioningError as error:
        yield Finding("input", "fail", f"{text}: {error}{where}", _todo(error, text, reading=True))
        return
    number = ("at least " if len(entries) == _LISTED else "") + counted(len(entries), "image")
    yield Finding(
        "input",
        "ok",
        f"{text}: {number} listed in {listed:.1f} s, the first ({size / 1e6:.2f} MB) read in "
        f"{time.monotonic() - began:.2f} s{where}",
    )


def check_output(text: str, storage: StorageSettings) -> Iterator[Finding]:
    """Whether files can be written, read, listed and deleted in an OUTPUT, tested with a small file."""
    where = credentials(text, storage)
    began = time.monotonic()
    try:
        with retry_policy(INTERACTIVE):
            root = Location.parse(text, storage)
            root.check_writable()
            if not root.is_local:
                # In an object store each of these needs its own permission; locally the check above is enough.
                name = f".captioning-doctor-{secrets.token_hex(6)}"
                probe, content = root / name, name.encode()
                probe.write_bytes(content)
                try:
                    same = probe.read_bytes() == content and name in root.names()
                finally:
                    probe.delete()
                if not same:
                    todo = "Captioning needs storage in which written files are visible immediately."
                    yield Finding("output", "fail", f"{text}: a file written there was not found again", todo)
                    return
    except CaptioningError as error:
        yield Finding("output", "fail", f"{text}: {error}{where}", _todo(error, text, reading=False))
        return
    yield Finding("output", "ok", f"{text} can be written to ({time.monotonic() - began:.1f} s){where}")


def credentials(text: str, storage: StorageSettings) -> str:
    """Where the credentials for a URI come from, as the end of a sentence; "" for a URI that needs none."""
    if not text.partition("=")[2].startswith("s3://") and not text.startswith(("s3://", "s3a://")):
        return ""
    if storage.anonymous:
        return "; without credentials (storage.anonymous)"
    try:
        from botocore.session import Session

        session = Session(profile=storage.profile)
        found = session.get_credentials()
    except Exception as error:  # botocore raises many kinds
        return f"; credentials could not be found: {type(error).__name__}: {error}"
    if found is None:
        return "; no credentials found"
    of = {
        "env": "environment variables",
        "shared-credentials-file": "the shared credentials file",
        "config-file": "the AWS config file",
        "iam-role": "the machine's IAM role",
        "container-role": "the container's role",
        "assume-role": "an assumed role",
        "assume-role-with-web-identity": "the pod's web identity",
        "sso": "AWS SSO",
    }.get(str(found.method), str(found.method))
    profile = storage.profile or os.environ.get("AWS_PROFILE")
    return f"; credentials from {of}" + (f", profile {profile}" if profile else "")


def _todo(error: CaptioningError, text: str, *, reading: bool) -> str:
    kind = error.error_class if isinstance(error, StorageError) else ""
    if kind in ("forbidden", "credentials") and "s3://" in text:
        rights = (
            "s3:ListBucket and s3:GetObject"
            if reading
            else "s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject"
        )
        return (
            f"Grant these credentials {rights} there, or use others: AWS_PROFILE, or --set storage.profile=NAME; for a "
            "public bucket --set storage.anonymous=true."
        )
    if kind in ("network", "timeout"):
        return (
            "Check that the address can be reached from here; for a store other than AWS: --set storage.endpoint=URL."
        )
    if kind in ("forbidden",):
        return "Get permission to access it, or choose another location."
    return ""
