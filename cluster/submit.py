"""The command `submit`: runs a verb of `python -m jobs` on a cluster and watches it."""

import secrets
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import AddressOption, connect, job_hints, print_message

if TYPE_CHECKING:
    from cluster.jobs_api import JobsApi
    from cluster.packaging import Package
    from cluster.verb_call import VerbCall


def submit(
    verb: Annotated[
        list[str],
        typer.Argument(
            metavar="VERB",
            help="After --, a verb of `python -m jobs` with its arguments. Paths are URIs that every node reaches.",
            show_default=False,
        ),
    ],
    address: AddressOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Do not wait: print the job's id and exit.", show_default=False)
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME[=VALUE]",
            help="A variable for the job's processes on all nodes, such as AWS_ACCESS_KEY_ID. NAME alone takes the "
            "local value, without showing it in process lists. Can be repeated.",
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
        typer.Option(
            "--requirements", metavar="FILE", help="Packages from a requirements file for pip.", show_default=False
        ),
    ] = None,
) -> None:
    """Run a verb on a Ray cluster, watch it, and exit with its code.

    This checkout is packed (code, configs/, the bundled captioners; no
    data, no outputs) and sent, unless the cluster has it already. A --config
    file from anywhere is sent along. The job runs with the Python of the
    cluster's Ray.

    Ctrl-C ends this command only, and prints how to watch the job again and
    how to stop it. A job that was stopped, or whose cluster was lost, resumes
    when the same command is submitted again.

    python -m cluster submit --address http://HEAD:8265 --env AWS_PROFILE
    -- caption s3://bucket/photos -o s3://bucket/captions

    The token is read from RAY_AUTH_TOKEN, from the file that
    RAY_AUTH_TOKEN_PATH names, or from ~/.ray/auth_token.
    """
    from cluster.runtime_env import job_variables, packages_to_install, runtime_env
    from cluster.verb_call import check_call
    from cluster.versions import check_versions

    job_id: str | None = None
    try:
        call = check_call(verb)
        variables = job_variables(env or ())
        packages = packages_to_install(pip or (), requirements)
        api = connect(address)
        api.secrets += [variables[text.partition("=")[0]] for text in env or ()]
        for note in [*check_versions(*api.versions()), *call.notes]:
            print_message(note)
        package = _send(api, call)
        job_id = _new_id(call.verb)
        entrypoint = f"exec sh cluster/start.sh {shlex.join(call.arguments)}"
        metadata = {"captioning_command": shlex.join(call.arguments)}
        api.submit(job_id, entrypoint, runtime_env(package.uri, variables, packages), metadata)
    except KeyboardInterrupt:
        if job_id is None:
            raise KeyboardInterrupt("Nothing was submitted.") from None
        raise KeyboardInterrupt(f"Job {job_id} may have been submitted.\n{job_hints(job_id, address)}") from None
    print_message(f"Submitted job {job_id} to {api.shown}.")
    if detach:
        print(job_id)
        print_message(job_hints(job_id, address))
        return
    watch(api, job_id, address)


def watch(api: "JobsApi", job_id: str, address: str | None) -> None:
    """Print a job's log until it ends, and exit with its code. Ctrl-C leaves it running."""
    from captioning.errors import UnfinishedError
    from cluster.follow import follow
    from cluster.log_view import LogView

    view = LogView(sys.stdout)
    try:
        job = follow(api, job_id, view, print_message)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Job {job_id} continues.\n{job_hints(job_id, address)}") from None
    except UnfinishedError as error:
        raise UnfinishedError(f"{error}\n{job_hints(job_id, address)}") from error
    finally:
        view.end()
    print_message(api.redact(job.outcome()))
    raise typer.Exit(job.code or 0)


def _send(api: "JobsApi", call: "VerbCall") -> "Package":
    """Pack the checkout, and upload it unless the cluster has it already."""
    import tempfile

    from cluster.packaging import collect, mebibytes

    package = collect(extra=call.extra)
    if api.has_package(package.name):
        print_message(f"The cluster already has this checkout ({len(package.files):,} files); nothing to send.")
        return package
    with tempfile.TemporaryFile() as file:
        size = package.write(file)
        print_message(f"Sending this checkout: {len(package.files):,} files, {mebibytes(size)}.")
        file.seek(0)
        api.upload(package.name, file)
    return package


def _new_id(verb: str) -> str:
    from datetime import datetime

    return f"{verb}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
