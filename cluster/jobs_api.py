"""A client of Ray's Jobs API: packages, jobs and logs over HTTP, with time limits and errors that say what to do.

    api = JobsApi("http://HOST:8265", credentials);   api.submit(…);   api.job("caption-…").state

Ray's own client is not used: it prefers RAY_ADDRESS to the address it is given, waits minutes for a host that
does not answer, and starts a good part of Ray.
"""

import re
from collections.abc import Mapping
from typing import IO, Any
from urllib.parse import quote

import requests

from captioning.errors import CaptioningError, UnfinishedError, UsageError
from captioning.redaction import without_secrets
from cluster.credentials import Credentials
from cluster.job import Job

#: Connect and read timeouts in seconds.
_CONNECT, _READ = 5.0, 60.0
_SHOWN = 1500


class UnreachableError(UnfinishedError):
    """Nothing answers at the address, or the connection was lost."""


class NoJobError(UsageError):
    """The cluster knows no job of that id."""


class JobsApi:
    """The Jobs API at one address. Every method raises `UnreachableError`, or `UsageError` where access is denied.

    `secrets` are texts to remove from the cluster's answers before they are shown.
    """

    def __init__(self, address: str, credentials: Credentials) -> None:
        self.address = address
        self.credentials = credentials
        self.secrets: list[str] = list(credentials.secrets())
        self._session = requests.Session()
        self._session.auth = _Headers(credentials)

    @property
    def shown(self) -> str:
        """The address without passwords."""
        return without_secrets(self.address)

    def versions(self) -> tuple[str, str | None]:
        """Ray's version, and Python's if the cluster reports it."""
        answer = self._checked_request("GET", "/api/version")
        ray = _mapping(answer).get("ray_version")
        if not isinstance(ray, str):
            raise self._no_cluster()
        return ray, self._python_version()

    def _python_version(self) -> str | None:
        try:
            answer = self._request("GET", "/api/v0/cluster_metadata")
        except CaptioningError:
            return None
        data = _mapping(answer).get("data")
        if not isinstance(data, dict):
            return None
        version = data.get("pythonVersion") or data.get("python_version")
        return version if isinstance(version, str) else None

    def has_package(self, name: str) -> bool:
        """Whether the cluster has a package of that name; if so, it keeps it for some minutes at least."""
        answer = self._request("GET", f"/api/packages/gcs/{quote(name, safe='')}")
        if answer.status_code == 404:
            return False
        self._check(answer)
        return True

    def upload(self, name: str, content: IO[bytes]) -> None:
        """Upload a package. `content` is streamed."""
        answer = self._request("PUT", f"/api/packages/gcs/{quote(name, safe='')}", data=content)
        if answer.status_code == 413 or "Request Entity Too Large" in answer.text:
            raise UsageError(f"The cluster at {self.shown} rejects a package of this size. {self._detail(answer)}")
        self._check(answer)

    def submit(self, job_id: str, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Have the cluster run a command. Retrying after a lost answer does not start a second job."""
        body = {
            "entrypoint": entrypoint,
            "submission_id": job_id,
            "runtime_env": dict(runtime_env),
            "metadata": dict(metadata),
        }
        try:
            answer = self._request("POST", "/api/jobs/", json=body)
        except UnreachableError:
            # The job may have been accepted before the answer was lost.
            try:
                self.job(job_id)
            except NoJobError:
                answer = self._request("POST", "/api/jobs/", json=body)
            else:
                return
        self._check(answer)

    def job(self, job_id: str) -> Job:
        """One job. Raises `NoJobError`."""
        return Job.from_details(self._json_object(self._job_request("GET", job_id)))

    def jobs(self) -> list[Job]:
        """All submitted jobs that the cluster remembers, newest first."""
        answer = self._checked_request("GET", "/api/jobs/")
        listed = _json(answer)
        if not isinstance(listed, list):
            raise self._no_cluster()
        found = [Job.from_details(each) for each in listed if each.get("type") == "SUBMISSION"]
        return sorted(found, key=lambda job: job.started or 0.0, reverse=True)

    def logs(self, job_id: str) -> str:
        """A job's log so far. Raises `NoJobError`."""
        return str(self._json_object(self._job_request("GET", job_id, "/logs")).get("logs") or "")

    def stop(self, job_id: str) -> bool:
        """Ask a job to stop; returns whether it was running. Raises `NoJobError`."""
        return bool(self._json_object(self._job_request("POST", job_id, "/stop")).get("stopped"))

    def tail_address(self, job_id: str) -> str:
        """The WebSocket address that streams a job's log from the beginning."""
        return f"ws{self.address.removeprefix('http')}/api/jobs/{quote(job_id, safe='')}/logs/tail"

    def auth_error(self, status: int) -> UsageError | None:
        """The error for a status of denied access, 401 or 403; None for any other."""
        if status not in (401, 403):
            return None
        places = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
        if self.credentials.token is None:
            return UsageError(
                f"The cluster at {self.shown} requires a token, and none was found here (HTTP {status}). Put it into "
                f"{places} (with RAY_AUTH_MODE unset or token). On the head, `ray get-auth-token` prints it; with "
                "KubeRay it is in the Secret with the cluster's name."
            )
        return UsageError(
            f"The cluster at {self.shown} rejects the token from {self.credentials.source} (HTTP {status}). Check that "
            f"it is this cluster's: on the head, `ray get-auth-token` prints it. The token is read from {places}, in "
            "this order."
        )

    def redact(self, text: str) -> str:
        """`text` without the secrets that were sent, and without anything that looks like a secret."""
        for secret in self.secrets:
            if len(secret) >= 4:
                text = text.replace(secret, "***")
        return without_secrets(text)

    def _no_cluster(self) -> UsageError:
        return UsageError(
            f"{self.shown} is not the Jobs API of a Ray cluster. Use the address of the head's dashboard, such as "
            "http://HOST:8265."
        )

    def _json_object(self, answer: requests.Response) -> dict[str, Any]:
        """The JSON object of an answer. Raises `UsageError` for anything else, such as a login page."""
        value = _json(answer)
        if not isinstance(value, dict):
            raise self._no_cluster()
        return value

    def _job_request(self, method: str, job_id: str, rest: str = "") -> requests.Response:
        answer = self._request(method, f"/api/jobs/{quote(job_id, safe='')}{rest}")
        if answer.status_code == 404:
            raise NoJobError(
                f"The cluster at {self.shown} has no job {job_id}. `python -m cluster list` shows its jobs; those from "
                "before a restart of its head are gone. Submit the same command again to resume a run."
            )
        self._check(answer)
        return answer

    def _checked_request(self, method: str, path: str) -> requests.Response:
        answer = self._request(method, path)
        self._check(answer)
        return answer

    def _request(self, method: str, path: str, **what: Any) -> requests.Response:
        try:
            answer = self._session.request(method, self.address + path, timeout=(_CONNECT, _READ), **what)
        except requests.exceptions.SSLError as error:
            if "WRONG_VERSION_NUMBER" in str(error):
                raise UsageError(
                    f"The server at {self.shown} does not use HTTPS. Use its address with http://."
                ) from None
            raise UsageError(
                f"The certificate of {self.shown} is not trusted: {self._reason(error)}. Set REQUESTS_CA_BUNDLE to the "
                "certificate file of the authority that signed it."
            ) from None
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise UnreachableError(
                f"No cluster answers at {self.shown}: {self._reason(error)}. Check that it is running and that this "
                "machine can reach its dashboard (if necessary through a tunnel, such as `kubectl port-forward` or "
                "`ssh -L 8265:127.0.0.1:8265 HEAD`), and pass its address with --address."
            ) from None
        except requests.exceptions.RequestException as error:
            raise UsageError(f"The request to {self.shown} failed: {self._reason(error)}.") from None
        refused = self.auth_error(answer.status_code)
        if refused is not None:
            raise refused
        return answer

    def _check(self, answer: requests.Response) -> None:
        if answer.ok:
            return
        if answer.status_code == 404 and "html" in answer.headers.get("content-type", ""):
            raise self._no_cluster()
        if answer.status_code in (502, 503, 504):
            kind: type[CaptioningError] = UnreachableError  # from a proxy whose cluster does not answer
        else:
            kind = UsageError if answer.status_code < 500 else UnfinishedError
        raise kind(f"The cluster at {self.shown} answered HTTP {answer.status_code}. {self._detail(answer)}")

    def _detail(self, answer: requests.Response) -> str:
        """The end of the cluster's answer; of a traceback, the last line."""
        text = self.redact(answer.text).strip()
        if "Traceback (most recent call last)" in text:
            text = text.splitlines()[-1]
        return f"It says: {text[-_SHOWN:]}" if text else "It gives no reason."

    def _reason(self, error: Exception) -> str:
        """The reason of a `requests` error in a few words."""
        if isinstance(error, requests.exceptions.Timeout):
            return "no answer in time"
        text = self.redact(str(error))
        for pattern, words in _REASONS:
            if re.search(pattern, text):
                return words
        return text[:300].rstrip(".")


_REASONS = (
    (r"Connection refused", "connection refused"),
    (r"Name or service not known|nodename nor servname|getaddrinfo|NameResolution", "host not found"),
    (r"No route to host|Network is unreachable", "host unreachable"),
    (r"RemoteDisconnected|Connection aborted|Connection reset", "the connection was closed"),
    (r"timed out", "no answer in time"),
)


class _Headers(requests.auth.AuthBase):
    """Sends the headers of `Credentials`; setting `auth` also keeps `requests` from using a `.netrc`."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._credentials.headers())
        return request


def _mapping(answer: requests.Response) -> dict[str, Any]:
    """The JSON object of an answer, or an empty one."""
    value = _json(answer)
    return value if isinstance(value, dict) else {}


def _json(answer: requests.Response) -> Any:
    """The JSON of an answer, or None."""
    try:
        return answer.json()
    except ValueError:
        return None
