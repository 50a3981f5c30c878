"""Fetches images that a request names by web address, where the settings allow it, and nothing else."""

from urllib.parse import urlsplit

from captioning.errors import StorageError
from captioning.retries import RetryPolicy
from captioning.storage import Location, StorageSettings
from jobs.serving.request_errors import RequestError
from jobs.serving.settings import LimitSettings

_RETRY_POLICY = RetryPolicy(attempts=2, seconds=20.0, attempt_seconds=10.0)


def fetch(url: str, storage: StorageSettings, limits: LimitSettings) -> bytes:
    """The bytes behind a web address. Raises `RequestError`, or `StorageError` where it cannot be fetched.

    Clients get no access to this machine's files or to object stores, whatever the server itself may read.
    """
    try:
        scheme = urlsplit(url).scheme.lower()
    except ValueError:
        scheme = ""
    if scheme not in ("http", "https"):
        raise RequestError(422, "request", "urls must be web addresses: http://… or https://…")
    if not storage.allow_http:
        raise RequestError(
            403,
            "forbidden",
            "This server does not fetch web addresses: send the image itself, or start the server with "
            "--set storage.allow_http=true",
        )
    try:
        data = Location.from_uri(url, storage).read_range(0, limits.max_bytes + 1, retry=_RETRY_POLICY)
    except StorageError as error:
        if error.error_class == "forbidden":  # do not reveal where names resolve in this network
            raise RequestError(403, "forbidden", "This server is not allowed to fetch this address.") from error
        raise
    if len(data) > limits.max_bytes:
        raise StorageError("too_large", f"The file is larger than the limit of {limits.max_mb} MiB.")
    return data
