"""The command line: `python -m jobs VERB …`.

Each verb is a function of its name in a module of its name, imported when it is asked for.
This module knows the verbs' names and one line about each, nothing of what they do.
"""

import importlib
import os
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from jobs.cli import TRACEBACK_VARIABLE, guard

#: The verbs, in the order in which `--help` lists them.
VERBS = (
    "caption",
    "plan",
    "status",
    "verify",
    "retry",
    "report",
    "export",
    "serve",
    "prepare",
    "train",
    "evaluate",
    "average",
)


class VerbGroup(TyperGroup):
    """The verbs, each loaded from its module on demand, so that no verb waits for another's imports."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """The verbs' names."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:  # noqa: ARG002
        """The command of one verb, or None for a name that is no verb."""
        if cmd_name not in VERBS:
            return None
        verb = getattr(importlib.import_module(f"jobs.{cmd_name}"), cmd_name)
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name=cmd_name, no_args_is_help=True)(guard(verb))
        command = typer.main.get_command(single)
        assert isinstance(command, TyperCommand)
        # One that needs nothing does its work when nothing is given.
        command.no_args_is_help = any(parameter.required for parameter in command.params)
        return command


app = typer.Typer(
    cls=VerbGroup,
    name="jobs",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A caption for every image of an archive. Give a verb and --help for what it takes.",
    epilog="Exit codes: 0 done, 1 unfinished or not verified, 2 wrong usage (nothing written), 130 interrupted.",
)


@app.callback()
def main(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error came from.")] = False,
) -> None:
    """Caption archives of images, and train and measure the captioners that do it."""
    if traceback:
        os.environ[TRACEBACK_VARIABLE] = "1"


if __name__ == "__main__":
    app(prog_name="python -m jobs")
