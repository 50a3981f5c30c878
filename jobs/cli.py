"""Shared by every verb of the command line: option types, and errors turned into exit codes.

Imports neither Ray nor PyTorch: `--help` must stay quick.
"""

import functools
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from captioning.errors import UsageError
from jobs.completion import complete_model, complete_setting
from jobs.display import print_end
from jobs.interrupts import INTERRUPTED, reset_interrupts, sigterm_as_interrupt
from jobs.shared_options import wants_traceback
from jobs.user_errors import find_user_error

P = ParamSpec("P")
R = TypeVar("R")

OK, UNFINISHED, USAGE = 0, 1, 2

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings in YAML; configs/README.md lists all of them."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting, overriding --config; can be repeated.",
        autocompletion=complete_setting,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="REF",
        help="A checkpoint's folder or URI, a Hugging Face repository id, or a bundled name. "
        "Without it: the bundled captioner.",
        autocompletion=complete_model,
    ),
]


def guard(verb: Callable[P, R]) -> Callable[P, R]:
    """Wrap a verb so that an error ends it with one message on stderr and an exit code.

    2 for a `UsageError`, 1 for any other `CaptioningError`, 130 for an interrupt (Ctrl-C or
    SIGTERM). Anything else is a bug and keeps its traceback.
    """

    @functools.wraps(verb)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        reset_interrupts()
        try:
            with sigterm_as_interrupt():
                return verb(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            how = str(interrupt) or "Run the same command again to continue."
            raise _end(f"Interrupted. {how}", INTERRUPTED) from None
        except Exception as error:
            known = find_user_error(error)
            if known is None:
                raise
            if wants_traceback():
                traceback.print_exc()
            raise _end(f"Error: {known}", USAGE if isinstance(known, UsageError) else UNFINISHED) from None

    guarded.__doc__ = _help_text(verb)
    return guarded


def _help_text(verb: Callable[..., Any]) -> str:
    """A verb's docstring for `--help`: every paragraph on one line, for the terminal to wrap."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (inspect.getdoc(verb) or "").split("\n\n"))


def _end(message: str, code: int) -> typer.Exit:
    print_end(message, code)
    return typer.Exit(code)
