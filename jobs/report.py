"""The verb `report`: one self-contained HTML page about a caption run."""

from typing import Annotated

import typer

from jobs.cli import ConfigOption, SetOption
from jobs.verb_settings import read_verb_settings


def report(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="The output of a caption run: a folder or a URI.")],
    file: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page to write. Default: OUTPUT/_run/report.html"),
    ] = None,
    config: ConfigOption = None,
    set_values: SetOption = None,
) -> None:
    """Make one HTML page of a caption run: photos and captions, errors, scores, speed.

    The page is self-contained, thumbnails included: send it to anyone. Settings:
    max_photos (200), storage.*. Example:

    python -m jobs report build/pictures -o pictures.html --set max_photos=500
    """
    from captioning.run.layout import RunLayout
    from captioning.storage import Location
    from jobs.lean_arrow import lean_arrow
    from jobs.progress import counted
    from jobs.reporting.run import ReportSettings, write_report

    lean_arrow()
    options = read_verb_settings(ReportSettings, config, set_values)
    root = Location.parse(output, options.storage)
    target = Location.parse(file, options.storage) if file else RunLayout(root).report
    facts = write_report(root, target, max_photos=options.max_photos, storage=options.storage)
    print(
        f"Wrote {facts.file} ({facts.size_bytes / 1e6:.1f} MB): {counted(facts.images, 'image')}, "
        f"{counted(facts.errors, 'error')}, {counted(facts.photos, 'photo')} shown."
    )
    if facts.missing_photos:
        print(f"{counted(facts.missing_photos, 'photo')} without a thumbnail; the page says why.")
