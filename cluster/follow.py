"""Follows a job's log to its end, over a connection that may drop."""

import asyncio
import os
import ssl
import time
from collections.abc import Callable

import aiohttp

from captioning.errors import CaptioningError, UnfinishedError
from cluster.job import Job
from cluster.jobs_api import JobsApi, UnreachableError

#: Seconds without a connection before giving up.
GIVE_UP = 900.0
#: WebSocket ping interval in seconds; half of it is the time to answer, enough for a busy head.
_HEARTBEAT = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
#: Seconds that a job may wait for its start before a message says so.
_PATIENCE = 8.0


def follow(
    api: JobsApi,
    job_id: str,
    write: Callable[[str], None],
    notify: Callable[[str], None],
    *,
    give_up: float = GIVE_UP,
) -> Job:
    """Pass a job's whole output to `write`, each character once, until the job ends; returns the job.

    A lost connection is restored, with a message to `notify`. Raises `NoJobError`, `UsageError` where access is
    denied, and `UnfinishedError` when there has been no connection for `give_up` seconds.
    """
    log = _LogTail(api, job_id, write)
    lost: float | None = None
    pause, fruitless = _FIRST_PAUSE, 0
    while True:
        before, problem = log.seen, f"The connection to {api.shown} was lost."
        try:
            _wait_for_start(api, job_id, notify)
            clean = asyncio.run(log.read())
            job = api.job(job_id)
        except UnreachableError as error:
            clean, problem = False, str(error)
        else:
            fruitless = 0 if log.seen > before else fruitless + 1
            # Report the job's end even if the cluster cannot send its whole log.
            if job.over and (clean or fruitless > 2):
                return job
        if clean or log.seen > before:
            lost, pause = None, _FIRST_PAUSE
        if not clean:
            if lost is None:
                lost = time.monotonic()
                notify(f"The connection to {api.shown} was lost; reconnecting. This does not stop the job.")
            elif time.monotonic() - lost > give_up:
                raise UnfinishedError(f"{problem} Job {job_id} may still be running; check again later.")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _wait_for_start(api: JobsApi, job_id: str, notify: Callable[[str], None]) -> Job:
    """Wait until the job runs or has ended; there is no log before."""
    began, notified = time.monotonic(), False
    while True:
        job = api.job(job_id)
        if job.state != "PENDING":
            return job
        if not notified and time.monotonic() - began > _PATIENCE:
            notified = True
            notify(f"Job {job_id} is waiting to start: {job.reason()}")
        time.sleep(0.5)


class _LogTail:
    """Reads a job's log, which the cluster sends from the beginning on every connection, and skips what was seen."""

    def __init__(self, api: JobsApi, job_id: str, write: Callable[[str], None]) -> None:
        self._api, self._id, self._write = api, job_id, write
        self.seen = 0

    async def read(self) -> bool:
        """Read until the connection ends; returns whether the cluster closed it after sending everything."""
        passed = 0
        try:
            async with (
                aiohttp.ClientSession(headers=self._api.credentials.headers(), trust_env=True) as session,
                session.ws_connect(
                    self._api.tail_address(self._id),
                    heartbeat=_HEARTBEAT,
                    max_msg_size=0,
                    ssl=_certificates(),
                    timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                ) as socket,
            ):
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        fresh = message.data[max(0, self.seen - passed) :]
                        passed += len(message.data)
                        if fresh:
                            self.seen += len(fresh)
                            self._write(fresh)
                return socket.close_code == aiohttp.WSCloseCode.OK
        except aiohttp.WSServerHandshakeError as error:
            refused = self._api.auth_error(error.status)
            if refused is not None:
                raise refused from None
            if error.status < 500:
                raise UnfinishedError(
                    f"The log of {self._id} cannot be followed at {self._api.shown} (HTTP {error.status}): a proxy in "
                    "between may block WebSockets. `logs` without -f prints the log so far."
                ) from None
            return False
        except CaptioningError:
            raise
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


def _certificates() -> ssl.SSLContext | bool:
    """The certificate authorities that `requests` trusts too."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return ssl.create_default_context(cafile=bundle) if bundle and os.path.isfile(bundle) else True
