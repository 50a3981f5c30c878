"""The verb `verify`: checks that a run's table is complete."""

from typing import Annotated

import typer

from captioning.errors import UnfinishedError
from jobs.cli import ConfigOption, SetOption
from jobs.verb_settings import read_verb_settings


def verify(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A run's folder or URI.", show_default=False)],
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Check a run's table: one row per indexed image, no id twice.

    Only reads files, and loads no model. Exit code 0 if the table is complete, 1 if not.
    Settings: storage.*. Examples:

    python -m jobs verify build/pictures

    python -m jobs verify s3://bucket/captions --set storage.profile=work
    """
    from captioning.run.layout import RunLayout
    from captioning.run.verify import verify as verify_run
    from captioning.storage import Location
    from jobs.lean_arrow import lean_arrow
    from jobs.progress import counted
    from jobs.verify_settings import VerifySettings

    lean_arrow()
    parsed = read_verb_settings(VerifySettings, config, settings)
    verdict = verify_run(RunLayout(Location.parse(output, parsed.storage)))
    print(f"{counted(verdict.inputs, 'image')} in the index, {counted(verdict.rows, 'row')} in the table.")
    if verdict.errors:
        classes = ", ".join(f"{count:,} {name}" for name, count in sorted(verdict.errors.items()))
        print(f"{counted(sum(verdict.errors.values()), 'error row')} among them: {classes}.")
    if not verdict.ok:
        problems = "\n  ".join(verdict.problems)
        raise UnfinishedError(
            f"The table in {output} is incomplete or has errors:\n  {problems}\n"
            "Delete any damaged part or foreign file, then run its `caption` command again: it writes only what is "
            "missing."
        )
    print("The table is complete: one row per image, no duplicate ids.")
