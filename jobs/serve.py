"""The verb `serve`: a page to try captions, and an HTTP endpoint, on Ray Serve."""

import errno
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Annotated

import typer

from captioning.errors import UnfinishedError, UsageError
from jobs.cli import ConfigOption, SetOption
from jobs.completion import complete_model
from jobs.verb_settings import read_verb_settings

if TYPE_CHECKING:
    from jobs.serving.cores import CoreAllocation
    from jobs.serving.settings import ServeSettings

#: Addresses that only this machine can reach.
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Health check interval, and the time without an answer after which the server is taken for dead, in seconds.
_CHECK_EVERY, _TIMEOUT = 5.0, 45.0


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="REF",
            help="A checkpoint's folder or URI, a Hugging Face repository id, or a bundled name; given twice, both are "
            "served side by side. Without it: the bundled captioner.",
            autocompletion=complete_model,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Where to listen. 127.0.0.1: for this machine alone; 0.0.0.0: for anyone who can reach it."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8000,
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Serve captions: a page to try them in a browser, and an HTTP endpoint for programs.

    Prints the address once it is ready, and runs until Ctrl-C. The page takes photos by drag and drop, paste or
    file choice; the endpoint is POST /caption, described at /docs; there are /health and /metrics too.
    There is no password: anyone who can reach the address can use it.

    Settings: replicas, threads, own_cores, gpus_per_replica, batch_size, precision, encoder, decoding.* (overriding
    the captioner's), limits.* (sizes, rates, beams, time), storage.allow_http for web addresses in requests.

    Example: python -m jobs serve --model flickr-lstm --model flickr-clip-gpt2

    Then: curl -F image=@photo.jpg -F beam_size=5 http://127.0.0.1:8000/caption
    """
    from jobs.serving.settings import ServeSettings

    parsed = read_verb_settings(ServeSettings, config, settings)
    captioners = _names(model or [], parsed)
    port = _free_port(host, port)
    _run(captioners, parsed, host, port)


def _run(captioners: dict[str, str | None], settings: "ServeSettings", host: str, port: int) -> None:
    from jobs.ray_session import ray_session

    print(f"Starting {' and '.join(captioners)} on Ray Serve …", flush=True)
    processes = len(captioners) * settings.replicas
    with ExitStack() as until_ray_ends, _allocated_cores(settings, processes) as cores, ray_session():
        from jobs.interrupts import sigterm_as_interrupt
        from jobs.serving.app import serving

        with serving(captioners, settings, host, port, cores, until_ray_ends), sigterm_as_interrupt():
            shown = f"[{host}]" if ":" in host else host
            if host in ("0.0.0.0", "::"):
                shown = socket.gethostname()
            print(f"Ready: http://{shown}:{port}/  (endpoint: POST /caption, described at /docs)")
            if host in _LOOPBACK:
                print("Only this machine can reach it; --host 0.0.0.0 opens it to others, without a password.")
            else:
                print("Anyone who can reach this address can use it: there is no password.")
            print("Press Ctrl-C to stop.", flush=True)
            try:
                _watch(host, port)
            except KeyboardInterrupt:
                print("Stopping …", flush=True)
                raise KeyboardInterrupt("The server has stopped; run the same command to start it again.") from None


def _watch(host: str, port: int) -> None:
    """Check regularly that the server answers. Raises `UnfinishedError` when it no longer does."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    silent = 0.0
    while silent < _TIMEOUT:
        time.sleep(_CHECK_EVERY)
        silent = 0.0 if _answers(here, port) else silent + _CHECK_EVERY
    raise UnfinishedError(
        f"The server has not answered for {_TIMEOUT:.0f} s: Ray may have stopped, perhaps for lack of memory. "
        "Run the same command to start it again."
    )


def _answers(host: str, port: int) -> bool:
    connection = HTTPConnection(host, port, timeout=_CHECK_EVERY)
    try:
        connection.request("GET", "/-/healthz")  # answered by Serve's proxy, without the gateway
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def _allocated_cores(settings: "ServeSettings", processes: int) -> Iterator["CoreAllocation"]:
    """Allocate this machine's cores to captioners and to the rest of the server, which is pinned to its share."""
    from jobs.cores import affinity, try_lock, usable_cores
    from jobs.gpus import has_gpu
    from jobs.serving.cores import allocate_cores

    # On a cluster, others may have assigned the cores; with a GPU, a captioner's CPU thread mostly waits.
    wanted = settings.own_cores and not os.environ.get("RAY_ADDRESS") and not has_gpu()
    # A second server would choose the same cores as the first.
    with try_lock("own-cores") if wanted else nullcontext(False) as own:
        cores = allocate_cores(usable_cores(), processes, settings.threads, dedicated=own)
        with affinity(cores.others):
            yield cores


def _names(refs: Sequence[str], settings: "ServeSettings") -> dict[str, str | None]:
    """The captioners by the short names that requests use, checked before anything starts. Raises `UsageError`."""
    from captioning.captioner_info import inspect_captioner

    captioners: dict[str, str | None] = {}
    whole: set[str] = set()
    wanted: list[str | None] = [*refs] or [None]
    for ref in wanted:
        info = inspect_captioner(
            ref, decoding=settings.decoding, precision=settings.precision, storage=settings.storage
        )
        if info.name in whole:
            raise UsageError(f"--model {ref}: {info.name} is given twice. Pass each captioner once.")
        whole.add(info.name)
        name = info.name.rpartition("-")[0]
        captioners[info.name if name in captioners else name] = ref
    return captioners


def _free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises `UsageError` where it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # A port that was released a moment ago counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            advice = "or stop the program that uses it." if in_use else "or check --host."
            raise UsageError(
                f"Cannot listen on port {port} of {host}: {error.strerror or error}. Choose another --port (0 takes a "
                f"free one), {advice}"
            ) from error
        return int(probe.getsockname()[1])
