"""The command line: `python -m jobs VERB …`.

Each verb is a function in a module, both of its name; the module is imported when the verb is asked for.
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
        f"Error: {sys.executable} lacks the package {missing.name!r}, which the command line needs. Run `make setup` "
        "and use .venv/bin/python, or install what is missing: pip install -e '.[runner]'"
    )

from jobs.cli import guard
from jobs.completion import COMPLETE_VARIABLE, ShowCompletionOption
from jobs.shared_options import (
    ProgressOption,
    TracebackOption,
    VerboseOption,
    apply_shared_options,
    with_shared_options,
)

#: The verbs, in the order in which `--help` lists them.
VERBS = (
    *("caption", "plan", "status", "verify", "retry", "report", "compare", "export", "serve"),
    *("prepare", "train", "evaluate", "average", "doctor"),
)
#: The verbs that show progress.
_WITH_PROGRESS = frozenset({"caption", "plan", "retry", "export", "prepare", "train", "evaluate"})


class VerbGroup(TyperGroup):
    """Loads each verb from its module on demand, so that no verb waits for another's imports."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """The verbs' names."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:  # noqa: ARG002
        """The command of a verb, or None for an unknown name."""
        if cmd_name not in VERBS:
            return None
        verb = guard(getattr(importlib.import_module(f"jobs.{cmd_name}"), cmd_name))
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name=cmd_name)(with_shared_options(verb, progress=cmd_name in _WITH_PROGRESS))
        command = typer.main.get_command(single)
        assert isinstance(command, TyperCommand)
        # A verb without required parameters runs when called without arguments.
        command.no_args_is_help = any(parameter.required for parameter in command.params)
        return command


app = typer.Typer(
    cls=VerbGroup,
    name="jobs",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A caption for every image of an archive. VERB --help lists a verb's arguments and options.",
    epilog="Exit codes: 0 done, 1 unfinished or not verified, 2 wrong usage (nothing written), 130 interrupted.",
)


@app.callback()
def main(
    context: typer.Context,
    progress: ProgressOption = None,
    verbose: VerboseOption = False,
    traceback: TracebackOption = False,
    show_completion: ShowCompletionOption = None,  # noqa: ARG001 - its callback ends the command
) -> None:
    """Caption archives of images, and train and evaluate captioners.

    Start with these:

    python -m jobs doctor                                  checks that everything needed is here

    python -m jobs caption ~/Pictures -o build/pictures    captions a folder of photos

    python -m jobs report build/pictures                   makes an HTML page of the captions

    python -m jobs caption --help                          explains a verb, with examples
    """
    context.with_resource(apply_shared_options(verbose=verbose, traceback=traceback, progress=progress))


if __name__ == "__main__":
    if COMPLETE_VARIABLE in os.environ:
        # Typer registers shells only through its own completion options, which do not support `python -m`.
        completion_init()
    app(prog_name="python -m jobs", complete_var=COMPLETE_VARIABLE)
