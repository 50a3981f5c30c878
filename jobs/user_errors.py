"""Finds the error meant for the user in an exception, also where Ray has wrapped it."""

from captioning.errors import CaptioningError


def find_user_error(error: BaseException) -> CaptioningError | None:
    """The `CaptioningError` in an exception's chain, also where Ray wrapped one raised in a worker."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        at = pending.pop(0)
        if at is None or id(at) in seen:
            continue
        seen.add(id(at))
        cause = getattr(at, "cause", None)  # RayTaskError keeps the worker's exception here
        if isinstance(cause, BaseException):
            pending.insert(0, cause)
        elif isinstance(at, CaptioningError):
            return at
        pending += [at.__cause__, at.__context__ if not at.__suppress_context__ else None]
    return None
