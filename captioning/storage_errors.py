"""Classifies storage failures into the few error classes of `StorageError`.

Operating systems, object stores and their clients each report failures in their own way; this module
turns all of them into `StorageError`. `storage` does the reading and writing.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from captioning.errors import CaptioningError, StorageError
from captioning.redaction import without_secrets

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NETWORK = {
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}
_THROTTLED_CODES = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "TooManyRequests",
    "TooManyRequestsException",
    "429",
    "503",
}
_FORBIDDEN_CODES = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "InvalidObjectState", "403"}
_CREDENTIAL_CODES = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "InvalidClientTokenId",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
    "RequestTimeTooSkewed",
    "RequestExpired",
    "NotSignedUp",
    "401",
}
_REGION_CODES = {
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
    "307",
}
_MISSING_CODES = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound", "404", "410"}
_SERVER_CODES = {"InternalError", "InternalFailure", "InternalServerError", "ServiceUnavailable"}
_SERVER_CODES |= {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
_TIMEOUT_CODES = {"RequestTimeout", "RequestTimeoutException", "408"}

_ADVICE = {
    "missing": "Check the spelling and that it still exists.",
    "forbidden": "Check the permissions, and that the right credentials are used (storage.profile, storage.anonymous).",
    "credentials": "The store does not accept these credentials: check the keys in the environment, storage.profile, "
    "whether they have expired, and this machine's clock.",
    "region": "The bucket is in another region: set AWS_DEFAULT_REGION, or region in the profile.",
    "throttled": "The store is limiting requests; run again later, or with fewer parallel tasks.",
    "timeout": "The store did not answer in time; run again.",
    "network": "Check the network and storage.endpoint, then run again.",
    "no_space": "Free some space, or choose another place.",
    "storage": "",
}


@contextmanager
def storage_errors(where: str, action: str = "read") -> Iterator[None]:
    """Turn storage failures inside into a `StorageError` that says what could not be done to `where`.

    Captioning's own errors, and failures of another kind (such as a `TypeError`), pass through unchanged.
    """
    try:
        yield
    except CaptioningError:
        raise
    except Exception as error:
        error_class, transient = classify(error)
        if error_class is None:
            raise
        raise StorageError(error_class, _message(where, action, error_class, error), transient=transient) from error


def classify(error: BaseException) -> tuple[str | None, bool]:
    """The `error_class` of `error` and whether it is transient; None for the class when it is no storage failure."""
    code = _service_code(error)
    if code is not None:
        return _classify_code(code)
    name = type(error).__name__
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing", False
    if "Credential" in name or name in ("ProfileNotFound", "TokenRetrievalError", "SSOTokenLoadError"):
        return "credentials", False
    if isinstance(error, PermissionError):
        return "forbidden", False
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return "timeout", True
    if isinstance(error, ConnectionError) or any(kind.__name__ in _NETWORK_NAMES for kind in type(error).__mro__):
        return "network", True
    if isinstance(error, OSError):
        if error.errno in _NO_SPACE:
            return "no_space", False
        if error.errno in _FORBIDDEN:
            return "forbidden", False
        if error.errno in _NETWORK:
            return "network", True
        if error.errno == errno.EBUSY:
            return "throttled", True
        return "storage", False
    module = type(error).__module__.partition(".")[0]
    if module in ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "adlfs", "requests", "fsspec"):
        return "storage", False
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return "storage", False  # in the environment, or in a profile
    if isinstance(error, ValueError) and "null" in str(error):
        # A path with a NUL in it, for which Python says "embedded null byte".
        return "missing", False
    return None, False


_NETWORK_NAMES = {
    "EndpointConnectionError",
    "ConnectionClosedError",
    "HTTPClientError",
    "ClientConnectorError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ServerDisconnectedError",
    "ResponseParserError",
    "ResponseStreamingError",
    "IncompleteReadError",
    "IncompleteRead",
    "ProtocolError",
    "SSLError",
    "gaierror",
}


def _service_code(error: BaseException) -> str | None:
    """The object store's own error code, of the error or of its cause."""
    at: BaseException | None = error
    for _ in range(4):
        if at is None:
            return None
        response = getattr(at, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            http = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
            return code if _classify_code(code)[0] != "storage" or not http else http
        status = getattr(at, "status", None)
        if isinstance(status, int) and status >= 400:
            return str(status)
        at = at.__cause__
    return None


def _classify_code(code: str) -> tuple[str, bool]:
    if code in _MISSING_CODES:
        return "missing", False
    if code in _FORBIDDEN_CODES:
        return "forbidden", False
    if code in _CREDENTIAL_CODES:
        return "credentials", False
    if code in _REGION_CODES:
        return "region", False
    if code in _THROTTLED_CODES:
        return "throttled", True
    if code in _TIMEOUT_CODES:
        return "timeout", True
    if code in _SERVER_CODES or (len(code) == 3 and code.startswith("5")):
        return "network", True
    return "storage", False


def _message(where: str, action: str, error_class: str, error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    inner = getattr(error, "filename", None)
    if isinstance(inner, str) and inner not in reason and inner.startswith(where.rstrip("/") + "/"):
        reason += f" ({inner.encode('utf-8', 'backslashreplace').decode()})"
    text = f"Could not {action} {where}: {reason}. {_ADVICE[error_class]}".rstrip().replace("..", ".")
    return without_secrets(text)
