"""Retries of storage operations that failed for a transient reason: how often, for how long, with what pauses.

    call_with_retries(read, RetryPolicy(attempts=5, seconds=60))

Exponential backoff with equal jitter: pauses double, and each is drawn at random between half of itself and all
of it, so that many throttled workers do not come back at once. Eight attempts outlast any outage of 25 s.
Permanent errors (missing, forbidden) are raised at once.
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
class RetryPolicy:
    """How long an operation is retried before its error is raised.

    At most `attempts` are made, and none that would probably end more than `seconds` after the start of
    the first. `attempt_seconds` is the time limit of a single attempt, where the operation supports one.
    """

    attempts: int = 8
    seconds: float = 120.0
    attempt_seconds: float | None = None


#: Outlasts a short outage of a store: for work under way.
DEFAULT_POLICY = RetryPolicy()
#: Fails fast: for checks before the work, while a user waits.
INTERACTIVE = RetryPolicy(attempts=4, seconds=12.0)

_current: ContextVar[RetryPolicy] = ContextVar("retry_policy", default=DEFAULT_POLICY)


def current_policy() -> RetryPolicy:
    """The policy of operations that are given none."""
    return _current.get()


@contextmanager
def retry_policy(policy: RetryPolicy) -> Iterator[None]:
    """Set the policy of this thread's storage operations. With `INTERACTIVE` they give up within some 20 seconds."""
    token = _current.set(policy)
    try:
        yield
    finally:
        _current.reset(token)


def call_with_retries(operation: Callable[[float | None], T], policy: RetryPolicy | None = None) -> T:
    """Return the result of `operation`, retried while its `StorageError` is transient.

    It is passed the seconds that this attempt may take, or None. Raises the error of the last attempt.
    """
    policy = policy or current_policy()
    start = time.monotonic()
    for attempt in range(1, policy.attempts + 1):
        begun = time.monotonic()
        try:
            return operation(_attempt_limit(policy, begun - start))
        except StorageError as error:
            now = time.monotonic()
            pause = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
            # The next attempt will probably take as long as this one did.
            too_late = now + pause + (now - begun) - start > policy.seconds and policy.attempt_seconds is None
            spent = now + pause - start >= policy.seconds
            if not error.transient or attempt == policy.attempts or too_late or spent:
                raise
        time.sleep(pause)
    raise AssertionError("a policy has at least one attempt")


def _attempt_limit(policy: RetryPolicy, spent: float) -> float | None:
    if policy.attempt_seconds is None:
        return None
    return max(0.001, min(policy.attempt_seconds, policy.seconds - spent))
