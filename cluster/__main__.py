"""The command line: `python -m cluster submit|status|logs|stop|list`, each a module."""

import os
from typing import Annotated

import typer

from cluster.list_jobs import list_jobs
from cluster.logs import logs
from cluster.status import status
from cluster.stop import stop
from cluster.submit import submit
from jobs.cli import guard
from jobs.shared_options import TRACEBACK_VARIABLE

app = typer.Typer(
    name="cluster",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run verbs of `python -m jobs` on a Ray cluster, from anywhere that reaches its dashboard.",
    epilog="submit and logs -f exit with the job's code: 0 done, 1 unfinished, 2 wrong usage, 130 interrupted or "
    "stopped. 1 also means that no cluster answers; 2 that it denies access, or knows no such job.",
)

#: Everything after VERB belongs to the verb, with or without `--`.
_PASS_THROUGH = {"allow_interspersed_args": False}
app.command(name="submit", no_args_is_help=True, context_settings=_PASS_THROUGH)(guard(submit))
app.command(name="status", no_args_is_help=True)(guard(status))
app.command(name="logs", no_args_is_help=True)(guard(logs))
app.command(name="stop", no_args_is_help=True)(guard(stop))
app.command(name="list")(guard(list_jobs))


@app.callback()
def main(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error came from.")] = False,
) -> None:
    """Run verbs of `python -m jobs` on a Ray cluster, from anywhere that reaches its dashboard."""
    if traceback:
        os.environ[TRACEBACK_VARIABLE] = "1"


if __name__ == "__main__":
    app(prog_name="python -m cluster")
