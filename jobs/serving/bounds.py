"""How many requests there may be: at once in all, and from one address over time. Knows nothing of HTTP."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.serving.failures import RequestError

#: Addresses that are remembered; the one not heard of for longest is forgotten first.
_CLIENTS = 10_000


class Bounds:
    """Counts requests under way, and keeps a token bucket an address. Used from one event loop."""

    def __init__(
        self, *, at_once: int, rate: float = 0.0, burst: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._at_once, self._rate, self._burst, self._clock = at_once, rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.under_way = 0

    @contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """One request of `client`, from here to the end of the body. Raises `RequestError` with 429 or 503."""
        self._take(client)
        if self.under_way >= self._at_once:
            raise RequestError(
                503,
                "busy",
                f"{self.under_way} requests are under way, as many as may be at once. Send this one again in a second.",
                retry_after=1,
            )
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def _take(self, client: str) -> None:
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
                f"This address has sent more than {self._rate:g} requests a second. Send this one again in {wait} s.",
                retry_after=wait,
            )
