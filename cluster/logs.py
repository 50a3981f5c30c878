"""The command `logs`: what a job has written, and writes."""

import sys
from typing import Annotated

import typer

from cluster.cli import AddressOption, IdArgument, connect


def logs(
    job: IdArgument,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on until the job is over, and end with its exit code.", is_flag=True),
    ] = False,
    address: AddressOption = None,
) -> None:
    """Print what a job has written, from its beginning.

    With -f this goes on until the job is over, and ends with its exit code.
    A connection that is lost is made again. Ctrl-C ends this command only.
    """
    from captioning.redaction import without_secrets

    api = connect(address)
    if follow:
        from cluster.submit import watch

        watch(api, job, address)
        return
    sys.stdout.write(without_secrets(api.logs(job)))
