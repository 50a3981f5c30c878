"""Options that all verbs share: --progress, --verbose, --traceback.

They are environment variables while a verb runs, so that the processes it starts have them too.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer

from captioning.errors import UsageError

#: Set to 1 to see the traceback of an error that is otherwise shown as one message.
TRACEBACK_VARIABLE = "CAPTIONING_TRACEBACK"
#: Set to 1 to see Ray's own messages.
VERBOSE_VARIABLE = "CAPTIONING_VERBOSE"
#: How progress is shown: a name of `ProgressMode`.
PROGRESS_VARIABLE = "CAPTIONING_PROGRESS"


class ProgressMode(StrEnum):
    """How progress is shown, on stderr."""

    auto = "auto"
    live = "live"
    plain = "plain"
    json = "json"
    none = "none"


TracebackOption = Annotated[
    bool,
    typer.Option("--traceback", help="Show where in the code an error came from.", rich_help_panel="Shared options"),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", help="Show what Ray logs, which is silenced otherwise.", rich_help_panel="Shared options"
    ),
]
ProgressOption = Annotated[
    ProgressMode | None,
    typer.Option(
        "--progress",
        help="How progress is shown on stderr: a live view (auto: in a terminal), plain lines every ten seconds (auto: "
        "elsewhere), JSON lines for programs, or not at all.",
        rich_help_panel="Shared options",
        show_default=False,
    ),
]


def with_shared_options(verb: Callable[..., Any], *, progress: bool) -> Callable[..., Any]:
    """`verb` with these options added to its own; --progress only for verbs that show it."""
    added: dict[str, Any] = {"verbose": VerboseOption, "traceback": TracebackOption}
    if progress:
        added = {"progress": ProgressOption, **added}
    defaults: Mapping[str, Any] = {"progress": None, "verbose": False, "traceback": False}

    @functools.wraps(verb)
    def with_options(*args: Any, **kwargs: Any) -> Any:
        shared = {name: kwargs.pop(name, defaults[name]) for name in added}
        with apply_shared_options(**shared):
            return verb(*args, **kwargs)

    signature = inspect.signature(verb)
    keyword = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(n, keyword, default=defaults[n], annotation=kind) for n, kind in added.items()]
    changed: Any = with_options
    changed.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])
    changed.__annotations__ = {**inspect.get_annotations(verb), **added}
    return with_options


@contextmanager
def apply_shared_options(
    *, verbose: bool = False, traceback: bool = False, progress: ProgressMode | None = None
) -> Iterator[None]:
    """Apply these options while the body runs, also to the processes it starts."""
    wanted = {}
    if verbose:
        wanted[VERBOSE_VARIABLE] = "1"
    if traceback:
        wanted[TRACEBACK_VARIABLE] = "1"
    if progress is not None:
        wanted[PROGRESS_VARIABLE] = progress.value
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def is_verbose() -> bool:
    """Whether Ray's own messages are shown."""
    return os.environ.get(VERBOSE_VARIABLE, "0") not in ("", "0")


def wants_traceback() -> bool:
    """Whether users' errors are shown with their traceback."""
    return os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")


def progress_mode() -> ProgressMode:
    """How progress is shown. Raises `UsageError` for an invalid value of the variable."""
    given = os.environ.get(PROGRESS_VARIABLE) or ProgressMode.auto.value
    try:
        return ProgressMode(given)
    except ValueError:
        names = ", ".join(mode.value for mode in ProgressMode)
        raise UsageError(
            f"The variable {PROGRESS_VARIABLE} is {given!r}, but must be one of {names}. Unset it or change it."
        ) from None
