"""The command line: `python -m jobs VERB …`.

Each verb is a function of its name in a module of its name, imported when it is asked for.
This module knows the verbs' names and one line about each, nothing of what they do.
"""

import importlib
import os
import sys
from typing import Any

try:
    import typer
    from typer._completion_classes import completion_init
    from typer.core import TyperCommand, TyperGroup
except ModuleNotFoundError as missing:
    sys.exit(
        f"Error: {sys.executable} has no package {missing.name!r}, which the command line needs. Set the environment "
        "up with `make setup` and use .venv/bin/python, or install what is missing: pip install -e '.[runner]'"
    )

from jobs.cli import guard
from jobs.completion import COMPLETE_VARIABLE, ShowCompletionOption
from jobs.shared_options import (
    ProgressOption,
    TracebackOption,
    VerboseOption,
    in_force,
    with_shared_options,
)

#: The verbs, in the order in which `--help` lists them.
VERBS = (
    *("caption", "plan", "status", "verify", "retry", "report", "compare", "export", "serve"),
    *("prepare", "train", "evaluate", "average", "doctor"),
)
#: Those that show progress.
_WITH_PROGRESS = frozenset({"caption", "plan", "retry", "export", "prepare", "train", "evaluate"})


class VerbGroup(TyperGroup):
    """The verbs, each loaded from its module on demand, so that no verb waits for another's imports."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """The verbs' names."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:  # noqa: ARG002
        """The command of one verb, or None for a name that is no verb."""
        if cmd_name not in VERBS:
            return None
        verb = guard(getattr(importlib.import_module(f"jobs.{cmd_name}"), cmd_name))
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name=cmd_name)(with_shared_options(verb, progress=cmd_name in _WITH_PROGRESS))
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
    context: typer.Context,
    progress: ProgressOption = None,
    verbose: VerboseOption = False,
    traceback: TracebackOption = False,
    show_completion: ShowCompletionOption = None,  # noqa: ARG001 - it ends the command by itself
) -> None:
    """Caption archives of images, and train and measure the captioners that do it.

    Begin with these:

    python -m jobs doctor                                  is everything here that is needed?

    python -m jobs caption ~/Pictures -o build/pictures    captions a folder of photos

    python -m jobs report build/pictures                   makes a page to look at

    python -m jobs caption --help                          what a verb takes, with examples
    """
    context.with_resource(in_force(verbose=verbose, traceback=traceback, progress=progress))


if __name__ == "__main__":
    if COMPLETE_VARIABLE in os.environ:
        # Typer makes shells known only with options of its own for it, which know no `python -m`.
        completion_init()
    app(prog_name="python -m jobs", complete_var=COMPLETE_VARIABLE)
