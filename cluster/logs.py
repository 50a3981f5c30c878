"""The command `logs`: prints or follows a job's log."""

import sys
from typing import Annotated

import typer

from cluster.cli import AddressOption, IdArgument, connect


def logs(
    job: IdArgument,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Follow the log until the job ends, and exit with its code.", is_flag=True),
    ] = False,
    address: AddressOption = None,
) -> None:
    """Print a job's log from its beginning.

    With -f, follow it until the job ends, and exit with the job's code. A
    lost connection is restored. Ctrl-C ends this command only.
    """
    from captioning.redaction import without_secrets

    api = connect(address)
    if follow:
        from cluster.submit import watch

        watch(api, job, address)
        return
    sys.stdout.write(without_secrets(api.logs(job)))
