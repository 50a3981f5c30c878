"""The server on Ray Serve: an HTTP gateway, and a deployment for each captioner.

The gateway is a single process, so that limits hold for the whole server; each captioner has as many
replicas as the settings say.
"""

import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from captioning.errors import UnfinishedError, UsageError
from jobs.ray_session import log_folder
from jobs.serving.cores import CoreAllocation
from jobs.serving.replica import CaptionerReplica
from jobs.serving.settings import ServeSettings
from jobs.serving.web import CaptionService, build_app

_APP = "captioning"
#: Above any limit of the gateway, which refuses excess requests itself, with a reason.
_NO_LIMIT = 1000


def _build_app() -> FastAPI:
    """The routes of the gateway's service; Serve calls this in the gateway's process, after `Gateway` was made."""
    return build_app(CaptionService.latest())


class _DeploymentClient:
    """A captioner's deployment, as a `CaptionerClient`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def about(self) -> dict[str, Any]:
        answer: dict[str, Any] = await self._handle.about.remote()
        return answer

    async def caption(self, data: bytes, overrides: Mapping[str, Any], attention: bool) -> dict[str, Any]:
        answer: dict[str, Any] = await self._handle.caption.remote(data, overrides, attention)
        return answer


@serve.ingress(_build_app)
class Gateway:
    """Takes requests and passes them to the captioners: deployment `handles`, called `names`."""

    def __init__(self, settings: ServeSettings, names: Sequence[str], *handles: Any) -> None:
        captioners = {name: _DeploymentClient(handle) for name, handle in zip(names, handles, strict=True)}
        CaptionService(captioners, settings)


@contextmanager
def serving(
    captioners: Mapping[str, str | None],
    settings: ServeSettings,
    host: str,
    port: int,
    cores: CoreAllocation,
    until_ray_ends: ExitStack,
) -> Iterator[None]:
    """Serve the captioners (short name → REF) while the body runs. Starts and stops Serve on the connected Ray.

    After the body, stdout is silenced until `until_ray_ends` is closed.

    Raises `UsageError` where that Ray already runs Serve, and `UnfinishedError` where a captioner does not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    logging_config = {"log_level": "ERROR", "enable_access_log": False}
    if _serve_is_there():
        raise UsageError(
            "Ray Serve is already running on this cluster, and this server cannot change its address. Stop it with "
            "`serve shutdown`, or unset RAY_ADDRESS to serve from this machine only."
        )
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=logging_config)
        try:
            serve.run(
                _application(captioners, settings, cores), name=_APP, route_prefix="/", logging_config=logging_config
            )
        except Exception as error:  # Serve raises RuntimeError, and keeps the reason in its status
            raise UnfinishedError(
                f"The server did not start: {_reason(error)}. Its logs are in {log_folder() / 'serve'}."
            ) from error
        yield
    finally:
        # The controller exits by itself, which Ray prints as a failure, at once or while Ray shuts down.
        until_ray_ends.enter_context(redirect_stdout(io.StringIO()))
        with suppress(Exception):
            serve.shutdown()


def _application(captioners: Mapping[str, str | None], settings: ServeSettings, cores: CoreAllocation) -> Any:
    processes = len(captioners) * settings.replicas
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
    share = settings.gpus_per_replica
    if share == "auto":
        # Equally many per GPU: with shares of 0.67 a GPU would hold only one.
        share = 1 / math.ceil(processes / gpus) if gpus else 0.0
    threads = 1 if gpus and settings.threads == "auto" else cores.threads
    options = {
        "num_cpus": min(1.0, 0.5 * cpus / processes),
        "num_gpus": share,
        # By default Ray gives a process one thread per requested CPU.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    }
    handles = [
        serve.deployment(CaptionerReplica)
        .options(
            name=f"captioner-{name}",
            num_replicas=settings.replicas,
            max_ongoing_requests=_NO_LIMIT,
            ray_actor_options=options,
            health_check_timeout_s=120,
            graceful_shutdown_timeout_s=5,
            max_constructor_retry_count=2,
        )
        .bind(ref, settings, threads, cores.captioners, "auto" if share else "cpu")
        for name, ref in captioners.items()
    ]
    gateway = serve.deployment(Gateway).options(
        max_ongoing_requests=_NO_LIMIT, ray_actor_options={"num_cpus": 0}, graceful_shutdown_timeout_s=5
    )
    return gateway.bind(settings, list(captioners), *handles)


def _serve_is_there() -> bool:
    with suppress(ValueError):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        return True
    return False


def _reason(error: Exception) -> str:
    """The last line of the deployments' messages, or of `error`."""
    text = str(error)
    with suppress(Exception):
        for application in serve.status().applications.values():
            messages = [each.message for each in application.deployments.values() if each.status == "DEPLOY_FAILED"]
            text = next((message for message in messages if message), text)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not set(line.strip()) <= set("^~ ")]
    return lines[-1].rstrip(".") if lines else type(error).__name__
