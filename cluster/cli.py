"""What the commands of `python -m cluster` share: the option for the address, and the lines that say what to do next.

Imports nothing that `--help` would wait for.
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
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The job, as `submit` and `list` name it.")]


def connect(address: str | None) -> "JobsApi":
    """The Jobs API that the options and the environment name; nobody is asked yet. Raises `UsageError`."""
    from cluster.address import find_address
    from cluster.jobs_api import JobsApi
    from cluster.login import find_login

    return JobsApi(find_address(address), find_login())


def command(words: str, address: str | None) -> str:
    """A command of this program to give next, with the address as it was given."""
    return f"python -m cluster {words}" + (f" --address {shlex.quote(without_secrets(address))}" if address else "")


def hints(job_id: str, address: str | None) -> str:
    """How to look after a job, a line each."""
    return "\n".join(
        (
            f"  watch it:  {command(f'logs -f {job_id}', address)}",
            f"  where it is:  {command(f'status {job_id}', address)}",
            f"  stop it:  {command(f'stop {job_id}', address)}",
        )
    )


def tell(text: str) -> None:
    """A line for the person, apart from what the job prints."""
    print(without_secrets(text), file=sys.stderr, flush=True)
