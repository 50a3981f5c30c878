"""The command `submit`: a verb of `python -m jobs`, run on a cluster and watched from here."""

import secrets
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import AddressOption, connect, hints, tell

if TYPE_CHECKING:
    from cluster.jobs_api import JobsApi
    from cluster.packaging import Package
    from cluster.verb_call import VerbCall


def submit(
    verb: Annotated[
        list[str],
        typer.Argument(
            metavar="VERB",
            help="After --, a verb of `python -m jobs` with all it takes. Places are URIs that every node reaches.",
            show_default=False,
        ),
    ],
    address: AddressOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Do not wait: print the job's id, and end.", show_default=False)
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME[=VALUE]",
            help="A variable for the job's processes on all nodes, such as AWS_ACCESS_KEY_ID; NAME alone takes the "
            "value that it has here, which no list of processes shows. Can be repeated.",
        ),
    ] = None,
    pip: Annotated[
        list[str] | None,
        typer.Option(
            "--pip",
            metavar="PACKAGE",
            help="A package that the cluster lacks, installed for this job on every node. Can be repeated.",
        ),
    ] = None,
    requirements: Annotated[
        Path | None,
        typer.Option("--requirements", metavar="FILE", help="The same, from a file for pip.", show_default=False),
    ] = None,
) -> None:
    """Run a verb on a Ray cluster and watch it. Its exit code is this command's.

    This checkout is packed (code, configs/, the bundled captioners; no
    data, no outputs) and sent, unless the cluster has it already. A --config
    file from anywhere goes with it. The job runs with the Python of the
    cluster's Ray.

    Ctrl-C ends this command only, and says how to watch the job again and
    how to stop it. A job that was stopped, or whose cluster was lost, goes on
    where it was when the same is submitted again.

    python -m cluster submit --address http://HEAD:8265 --env AWS_PROFILE
    -- caption s3://bucket/photos -o s3://bucket/captions

    A token is taken from RAY_AUTH_TOKEN, from the file that
    RAY_AUTH_TOKEN_PATH names, or from ~/.ray/auth_token.
    """
    from cluster.runtime_env import job_variables, packages_to_install, runtime_env
    from cluster.verb_call import check
    from cluster.versions import compare

    job_id: str | None = None
    try:
        call = check(verb)
        variables = job_variables(env or ())
        packages = packages_to_install(pip or (), requirements)
        api = connect(address)
        api.secrets += [variables[text.partition("=")[0]] for text in env or ()]
        for note in [*compare(*api.versions()), *call.notes]:
            tell(note)
        package = _send(api, call)
        job_id = _new_id(call.verb)
        entrypoint = f"exec sh cluster/start.sh {shlex.join(call.arguments)}"
        metadata = {"captioning_command": shlex.join(call.arguments)}
        api.submit(job_id, entrypoint, runtime_env(package.uri, variables, packages), metadata)
    except KeyboardInterrupt:
        if job_id is None:
            raise KeyboardInterrupt("Nothing was submitted.") from None
        raise KeyboardInterrupt(f"Job {job_id} may have been submitted.\n{hints(job_id, address)}") from None
    tell(f"Submitted job {job_id} to {api.shown}.")
    if detach:
        print(job_id)
        tell(hints(job_id, address))
        return
    watch(api, job_id, address)


def watch(api: "JobsApi", job_id: str, address: str | None) -> None:
    """Print what a job writes until it is over, and end with its exit code. Ctrl-C leaves it running."""
    from captioning.errors import UnfinishedError
    from cluster.follow import follow
    from cluster.log_view import LogView

    view = LogView(sys.stdout)
    try:
        job = follow(api, job_id, view, tell)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Job {job_id} goes on.\n{hints(job_id, address)}") from None
    except UnfinishedError as error:
        raise UnfinishedError(f"{error}\n{hints(job_id, address)}") from error
    finally:
        view.end()
    tell(api.hide(job.ending()))
    raise typer.Exit(job.code or 0)


def _send(api: "JobsApi", call: "VerbCall") -> "Package":
    """Pack the checkout, and send it unless the cluster has it."""
    import tempfile

    from cluster.packaging import collect, mebibytes

    package = collect(extra=call.extra)
    if api.has_package(package.name):
        tell(f"The cluster has this checkout already ({len(package.files):,} files): nothing is sent.")
        return package
    with tempfile.TemporaryFile() as file:
        size = package.write(file)
        tell(f"Sending this checkout: {len(package.files):,} files, {mebibytes(size)}.")
        file.seek(0)
        api.upload(package.name, file)
    return package


def _new_id(verb: str) -> str:
    from datetime import datetime

    return f"{verb}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
