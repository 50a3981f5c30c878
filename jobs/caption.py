"""The verb `caption`: a caption for every image of an archive, in a Parquet table."""

from typing import Annotated, Literal

import typer

from jobs.cli import ConfigOption, ModelOption, SetOption


def caption(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="What to caption: folders, images, globs, WebDataset tars, Parquet and Arrow files, text lists of "
            "paths or URIs; local or any fsspec URI (s3://…). NAME=INPUT puts NAME/ before its image ids.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUTPUT", help="The run's folder or URI.", show_default=False),
    ],
    model: ModelOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Take only the first N images.", show_default=False)
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="N",
            help="Take only N images, a random sample of the archive; the same every time.",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="Take only images that meet this condition: \"size_bytes > 100000 and uri like '%.jpg'\". Columns: "
            "image_id, uri, size_bytes, version, tar, offset, and those of input.keep_columns. Also <= = != in (…), "
            "between … and …, is null, ilike, or, not.",
            show_default=False,
        ),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add these INPUTs to the run in OUTPUT; the ones it has need not be repeated.")
    ] = False,
    refresh: Annotated[
        Literal["changed"] | None,
        typer.Option("--refresh", help="Caption again what changed in the archive since it was captioned."),
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Caption every image of an archive.

    After a stop, the same command resumes where it was; once all is done, it captions only images that
    are new in the archive. Every image gets a row: its caption, or an error with a reason.

    --limit, --sample and --where select images for a first look; --where with one of the others filters first.
    The selection is made when OUTPUT is created and kept with it: resume with the same flags. With --where alone,
    images that join the archive later and meet the condition are captioned too; with a number they are not.

    All settings are in configs/README.md. Examples:

    python -m jobs caption ~/Pictures -o build/pictures

    python -m jobs caption "s3://bucket/photos/**/*.jpg" -o s3://bucket/captions --set decoding.beam_size=5

    python -m jobs caption one=~/Pictures two=photos.txt -o build/both --model build/mine/best --limit 100
    """
    from captioning.run.selection import Selection
    from jobs.caption_settings import read_caption_settings
    from jobs.driving.caption_run import Request, caption_archive
    from jobs.driving.outcome import final_lines, require_success
    from jobs.lean_arrow import lean_arrow

    lean_arrow()
    parsed, decoding = read_caption_settings(config, settings or [])
    selection = Selection(limit=limit, sample=sample, where=where)
    refreshing = refresh is not None
    outcome = caption_archive(Request(tuple(inputs), output, model, parsed, decoding, selection, add, refreshing))
    for line in final_lines(outcome, output):
        print(line)
    require_success(outcome, output, "Delete any damaged part or foreign file, then run the same command again.")
