"""Limits on requests: how many are in flight at once, and the rate per client address."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.serving.request_errors import RequestError

#: Addresses to remember; the least recently seen is forgotten first.
_CLIENTS = 10_000


class RequestLimiter:
    """Counts requests in flight, and keeps a token bucket per address. Used from one event loop."""

    def __init__(
        self, *, max_in_flight: int, rate: float = 0.0, burst: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_in_flight, self._rate, self._burst, self._clock = max_in_flight, rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.in_flight = 0

    @contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """Count one request of `client` while the body runs. Raises `RequestError` with status 429 or 503."""
        self._take_token(client)
        if self.in_flight >= self._max_in_flight:
            raise RequestError(
                503,
                "busy",
                f"{self.in_flight} requests are in progress, the most this server allows. Try again in a second.",
                retry_after=1,
            )
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _take_token(self, client: str) -> None:
        if self._rate <= 0:
            return
        now = self._clock()
        tokens, since = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        if tokens < 1:
            wait = math.ceil((1 - tokens) / self._rate)
            raise RequestError(
                429,
                "rate",
                f"This address has sent more than {self._rate:g} requests per second. Try again in {wait} s.",
                retry_after=wait,
            )
