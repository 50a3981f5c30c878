"""Errors of a request: a status, a class and a message, and their JSON.

Classes for images and for fetching are those of the table that `caption` writes; this module adds

    request     an unreadable request: its body, a parameter, its type                 400, 415, 422
    settings    a wrong decoding setting                                              422
    model       a captioner that is not served here                                   404
    too_large   too many bytes (413), pixels (422) or images (413)
    busy, rate  too many requests at once, or from one address                        503, 429
    timeout     a request that took too long                                          504
"""

from typing import Any

from captioning.errors import CaptioningError, ImageError, StorageError, UnfinishedError
from captioning.redaction import without_secrets


class RequestError(CaptioningError):
    """A request that is refused."""

    def __init__(self, status: int, error_class: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error_class = error_class
        self.message = message
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return _request_error, (self.status, self.error_class, self.message, self.retry_after)


def to_request_error(error: CaptioningError) -> RequestError:
    """Any error as the answer to a request; what is wrong with an image is never the server's fault."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ImageError):
        return RequestError(422, error.error_class, error.message)
    if isinstance(error, StorageError):
        status = 403 if error.error_class == "forbidden" else 422
        return RequestError(status, error.error_class, error.message)
    if isinstance(error, UnfinishedError):  # no decoding process can be started: the machine is full
        return RequestError(
            503, "busy", "The server cannot handle this request now. Try again in 10 s.", retry_after=10
        )
    # Requests have their own name for this setting.
    return RequestError(422, "settings", str(error).replace("num_captions", "num_alternatives"))


def error_body(error: RequestError) -> dict[str, Any]:
    """An error's JSON."""
    return {"error": {"class": error.error_class, "message": without_secrets(error.message)}}


def _request_error(status: int, error_class: str, message: str, retry_after: int | None) -> RequestError:
    """Unpickle a `RequestError`."""
    return RequestError(status, error_class, message, retry_after=retry_after)
