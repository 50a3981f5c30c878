"""The verb `compare`: two runs over one archive side by side."""

from typing import Annotated

import typer

from jobs.cli import ConfigOption, SetOption
from jobs.verb_settings import read_verb_settings


def compare(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The OUTPUT of a caption run.", show_default=False)],
    other: Annotated[
        str, typer.Argument(metavar="RUN", help="The OUTPUT of another run over the same archive.", show_default=False)
    ],
    file: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write a page of the widest disagreements here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    config: ConfigOption = None,
    set_values: SetOption = None,
) -> None:
    """Compare two runs over one archive: two captioners, or one captioner before and after fine-tuning.

    Prints how many captions agree and how far, which errors differ, which images only one run has,
    and how settings and speed differ. CIDEr-D scores one run's captions with the other's as their
    only references: it measures how similar the two are, not how good. With -o FILE, one HTML page
    shows the photos on which the two agree least, with both captions.

    Rows are matched by image_id. Memory is bounded: some 0.6 GB for any number of rows up to 64
    million, which go through temporary files. Settings: max_photos (100), cider_images (50000; of
    more images, CIDEr-D is computed on that many drawn at random), unfinished (false), storage.*.
    Example:

    python -m jobs compare build/lstm build/clip -o build/compare.html
    """
    import json

    from captioning.storage import Location
    from jobs.comparing.run import CompareSettings, compare_runs, write_page
    from jobs.comparing.text import comparison_json, comparison_lines
    from jobs.lean_arrow import lean_arrow
    from jobs.progress import counted

    lean_arrow()
    options = read_verb_settings(CompareSettings, config, set_values)
    outputs = Location.parse(run, options.storage), Location.parse(other, options.storage)
    target = Location.parse(file, options.storage) if file else None
    found = compare_runs(*outputs, options, page=target)
    written = write_page(found, target, options) if target else None
    if as_json:
        print(json.dumps(comparison_json(found), ensure_ascii=False))
        return
    for line in comparison_lines(found):
        print(line)
    if written:
        print(f"page      {target} ({written.size_bytes / 1e6:.1f} MB), {counted(written.photos, 'photo')}")
        if written.missing_photos:
            print(f"          {counted(written.missing_photos, 'photo')} without a thumbnail; the page says why")
    else:
        print("page      none; -o FILE writes a page of the widest disagreements")
