"""Shared by the commands of `python -m cluster`: the address option, and hints at what to do next.

Imports nothing slow, since `--help` would wait for it.
"""

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from captioning.redaction import without_secrets

if TYPE_CHECKING:
    from cluster.jobs_api import JobsApi

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The head's dashboard. Without it RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else http://127.0.0.1:8265.",
        show_default=False,
    ),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as printed by `submit` and `list`.")]


def connect(address: str | None) -> "JobsApi":
    """The Jobs API at the address from the options or the environment, not contacted yet. Raises `UsageError`."""
    from cluster.address import find_address
    from cluster.credentials import find_credentials
    from cluster.jobs_api import JobsApi

    return JobsApi(find_address(address), find_credentials())


def command(words: str, address: str | None) -> str:
    """A command to suggest, with the address that was given."""
    return f"python -m cluster {words}" + (f" --address {shlex.quote(without_secrets(address))}" if address else "")


def job_hints(job_id: str, address: str | None) -> str:
    """How to watch and stop a job, one command per line."""
    return "\n".join(
        (
            f"  follow its log:  {command(f'logs -f {job_id}', address)}",
            f"  show its state:  {command(f'status {job_id}', address)}",
            f"  stop it:  {command(f'stop {job_id}', address)}",
        )
    )


def print_message(text: str) -> None:
    """Print a message on stderr, apart from the job's output."""
    print(without_secrets(text), file=sys.stderr, flush=True)
