"""The verb `retry`: captions again the rows that failed, and only those."""

from typing import Annotated

import typer

from jobs.cli import ConfigOption, SetOption
from jobs.completion import complete_model


def retry(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A run's folder or URI.", show_default=False)],
    error_class: Annotated[
        list[str] | None,
        typer.Option(
            "--error-class",
            metavar="CLASS",
            help="Only rows of this error class, such as network; can be repeated. Without it: all that failed.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="REF",
            help="Where the run's captioner is now, if its checkpoint has moved. Without it: where it was.",
            autocompletion=complete_model,
        ),
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Caption again the rows that failed.

    Uses the run's model and settings. --model is needed only if its checkpoint has moved, and --set can
    change only settings that do not affect captions: storage.*, runtime.*, errors.*. A row that fails
    again keeps the newest reason; all other rows stay as they are.

    Example:

    python -m jobs retry build/photos --error-class network --error-class timeout
    """
    from jobs.driving.outcome import require_success, retry_lines
    from jobs.driving.retry_run import RetryRequest, retry_rows
    from jobs.lean_arrow import lean_arrow

    lean_arrow()
    outcome = retry_rows(RetryRequest(output, tuple(error_class or ()), model, config, tuple(settings or ())))
    for line in retry_lines(outcome, output, error_class or []):
        print(line)
    hint = f"Delete any damaged part or foreign file, then run: python -m jobs caption INPUT… -o {output}"
    require_success(outcome, output, hint)
