"""The verb `serve`: a page to try captions, and an HTTP endpoint, on Ray Serve."""

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
    from jobs.serving.cores import Cores
    from jobs.serving.settings import ServeSettings

#: Addresses that only this machine reaches.
_OWN = ("127.0.0.1", "localhost", "::1")
#: Seconds between two looks at the server, and of silence after which it is gone.
_LOOK, _SILENCE = 5.0, 45.0


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
        typer.Option(help="Where to listen. 127.0.0.1 is this machine alone; 0.0.0.0 is everybody who reaches it."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8000,
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Serve captions: a page to try them in a browser, and an HTTP endpoint for programs.

    Prints the address once it is ready, and runs until Ctrl-C. The page takes photos by drop, paste or
    choice; the endpoint is POST /caption, described at /docs; there are /health and /metrics too.
    Nobody is asked for a password: whoever reaches the address can use it.

    Settings: replicas, threads, own_cores, gpus_per_replica, batch_size, precision, encoder, decoding.* over the
    captioner's own, limits.* (sizes, rates, beams, time), storage.allow_http for web addresses in requests.

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
    with ExitStack() as until_ray_ends, _shared_out(settings, processes) as cores, ray_session():
        from jobs.interrupts import terminate_as_interrupt
        from jobs.serving.app import serving

        with serving(captioners, settings, host, port, cores, until_ray_ends), terminate_as_interrupt():
            shown = f"[{host}]" if ":" in host else host
            if host in ("0.0.0.0", "::"):
                shown = socket.gethostname()
            print(f"Ready: http://{shown}:{port}/  (endpoint: POST /caption, described at /docs)")
            if host in _OWN:
                print("Only this machine can reach it; --host 0.0.0.0 opens it to others, without a password.")
            else:
                print("Anybody who reaches this address can use it: there is no password.")
            print("Ctrl-C ends it.", flush=True)
            try:
                _watch(host, port)
            except KeyboardInterrupt:
                print("Ending …", flush=True)
                raise KeyboardInterrupt("The server has ended; the same command starts it again.") from None


def _watch(host: str, port: int) -> None:
    """Look from time to time whether the server answers. Raises `UnfinishedError` when it does not any more."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    silent = 0.0
    while silent < _SILENCE:
        time.sleep(_LOOK)
        silent = 0.0 if _answers(here, port) else silent + _LOOK
    raise UnfinishedError(
        f"The server has given no answer for {_SILENCE:.0f} s: its Ray has ended, for want of memory perhaps. "
        "The same command starts it again."
    )


def _answers(host: str, port: int) -> bool:
    connection = HTTPConnection(host, port, timeout=_LOOK)
    try:
        connection.request("GET", "/-/healthz")  # of Serve itself: nobody else is troubled
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def _shared_out(settings: "ServeSettings", processes: int) -> Iterator["Cores"]:
    """The cores of this machine shared out among captioners and the rest of the server, which keeps to its own."""
    from jobs.cores import first_claim, kept_to, usable_cores
    from jobs.gpus import has_gpu
    from jobs.serving.cores import share_out

    # On a cluster others may have given the cores away; and beside a GPU a captioner waits more than it works.
    wanted = settings.own_cores and not os.environ.get("RAY_ADDRESS") and not has_gpu()
    # A second server would choose the cores that a first one has.
    with first_claim("own-cores") if wanted else nullcontext(False) as own:
        cores = share_out(usable_cores(), processes, settings.threads, own=own)
        with kept_to(cores.others):
            yield cores


def _names(refs: Sequence[str], settings: "ServeSettings") -> dict[str, str | None]:
    """The captioners by the short names that requests use. What is wrong with one is said before anything starts."""
    from captioning.captioner_info import inspect_captioner

    captioners: dict[str, str | None] = {}
    whole: set[str] = set()
    wanted: list[str | None] = [*refs] or [None]
    for ref in wanted:
        info = inspect_captioner(
            ref, decoding=settings.decoding, precision=settings.precision, storage=settings.storage
        )
        if info.name in whole:
            raise UsageError(f"--model {ref} is given twice: it is {info.name}.")
        whole.add(info.name)
        name = info.name.rpartition("-")[0]
        captioners[info.name if name in captioners else name] = ref
    return captioners


def _free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises `UsageError` where it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # A port that has just been left is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"Port {port} of {host} cannot be listened on: {error.strerror or error}. Give another --port (0 takes "
                "a free one), or end what uses it."
            ) from error
        return int(probe.getsockname()[1])
