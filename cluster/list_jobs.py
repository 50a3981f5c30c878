"""The command `list`: the jobs of a cluster, newest first."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import AddressOption, connect, print_message

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.job import Job

_COLOURS = {"RUNNING": "cyan", "SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow"}
#: The width outside a terminal, so that nothing is cut off.
_WIDE = 400


def list_jobs(
    most: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show the newest N.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print all jobs as JSON instead.")] = False,
    address: AddressOption = None,
) -> None:
    """List a cluster's jobs since its head was started, newest first."""
    from rich.console import Console

    from jobs.progress import counted

    api = connect(address)
    found = api.jobs()
    if as_json:
        from cluster.status import status_json

        print(json.dumps([status_json(job, {}) for job in found], indent=2))
        return
    if not found:
        print_message(f"The cluster at {api.shown} has no jobs.")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    console.print(jobs_table(found[:most]))
    if len(found) > most:
        print_message(f"{counted(len(found) - most, 'older job')} not shown; --limit {len(found)} shows all.")


def jobs_table(found: "list[Job]") -> "Table":
    """The jobs as a table."""
    from rich.table import Table
    from rich.text import Text

    from cluster.job import local_time

    table = Table(box=None, pad_edge=False)
    for name in ("JOB", "STATE", "SUBMITTED", "TOOK"):
        table.add_column(name, no_wrap=True)
    table.add_column("EXIT", justify="right", no_wrap=True)
    table.add_column("COMMAND", overflow="ellipsis", no_wrap=True)
    for job in found:
        table.add_row(
            Text(job.id),
            Text(job.state_text, style=_COLOURS.get(job.state, "")),
            local_time(job.started),
            job.elapsed(),
            "" if job.code is None else str(job.code),
            Text(job.command),
        )
    return table
