"""Trying again what failed for a reason that can pass: how often, for how long, and with what pauses.

    retrying(read, Patience(attempts=5, seconds=60))

Pauses double, and are drawn at random between half of that and all ("equal jitter"), so that many workers
that a store turned away do not come back all at once; eight attempts outlast an outage of 25 s in any case.
What cannot pass (missing, forbidden) fails at once. Knows nothing of what is tried.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from captioning.errors import StorageError

T = TypeVar("T")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 20.0


@dataclass(frozen=True)
class Patience:
    """How long one operation may go on failing before its failure counts.

    At most `attempts` are made, and none is begun that would probably end after `seconds` from the
    first one's start. `attempt_seconds` ends a single attempt, where the operation can be ended.
    """

    attempts: int = 8
    seconds: float = 120.0
    attempt_seconds: float | None = None


#: What outlasts a store's bad minute: for work that is under way.
STEADY = Patience()
#: What a person who waits for a first answer has: for checks before the work.
HURRIED = Patience(attempts=4, seconds=12.0)

_current: ContextVar[Patience] = ContextVar("patience", default=STEADY)


def current_patience() -> Patience:
    """The patience that holds where nobody says otherwise."""
    return _current.get()


@contextmanager
def patience(what: Patience) -> Iterator[None]:
    """Inside, `what` holds for this thread's storage operations. With `HURRIED` they give up within some 20 seconds."""
    token = _current.set(what)
    try:
        yield
    finally:
        _current.reset(token)


def retrying(operation: Callable[[float | None], T], limits: Patience | None = None) -> T:
    """What `operation` returns, tried again while its `StorageError` is `passing`.

    It is given the seconds that this attempt may take, or None. Raises the last attempt's error.
    """
    limits = limits or current_patience()
    start = time.monotonic()
    for attempt in range(1, limits.attempts + 1):
        begun = time.monotonic()
        try:
            return operation(_limit(limits, begun - start))
        except StorageError as error:
            now = time.monotonic()
            pause = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
            # The next attempt will probably take as long as this one did.
            too_late = now + pause + (now - begun) - start > limits.seconds and limits.attempt_seconds is None
            spent = now + pause - start >= limits.seconds
            if not error.passing or attempt == limits.attempts or too_late or spent:
                raise
        time.sleep(pause)
    raise AssertionError("patience has at least one attempt")


def _limit(limits: Patience, spent: float) -> float | None:
    if limits.attempt_seconds is None:
        return None
    return max(0.001, min(limits.attempt_seconds, limits.seconds - spent))
