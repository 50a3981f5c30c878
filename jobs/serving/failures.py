"""What goes wrong with a request: a status, a class and a message, and the JSON that says so.

Classes of images and of fetching are those of the table that `caption` writes; this module adds

    request     a request that cannot be read: a body, a parameter, a type            400, 415, 422
    settings    a decoding setting of a wrong value                                   422
    model       a captioner that is not served here                                   404
    too_large   more bytes (413) or pixels (422) than may be, or too many images (413)
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


def refusal(error: CaptioningError) -> RequestError:
    """The same as the answer to a request: what is wrong with an image is never the server's fault."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ImageError):
        return RequestError(422, error.error_class, error.message)
    if isinstance(error, StorageError):
        status = 403 if error.error_class == "forbidden" else 422
        return RequestError(status, error.error_class, error.message)
    if isinstance(error, UnfinishedError):  # no process for decoding can be started: the machine is full
        return RequestError(503, "busy", "The server has no room for this request. Send it again.", retry_after=10)
    # What a request may set goes by its own name.
    return RequestError(422, "settings", str(error).replace("num_captions", "num_alternatives"))


def said(error: RequestError) -> dict[str, Any]:
    """The JSON of an answer that is an error."""
    return {"error": {"class": error.error_class, "message": without_secrets(error.message)}}


def _request_error(status: int, error_class: str, message: str, retry_after: int | None) -> RequestError:
    """Rebuild a `RequestError` that crossed a process border."""
    return RequestError(status, error_class, message, retry_after=retry_after)
