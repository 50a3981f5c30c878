"""The verb `export`: a run's captions in the formats of other tools."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from captioning.errors import UnfinishedError
from jobs.cli import ConfigOption, SetOption

if TYPE_CHECKING:
    from captioning.run.export.exporter import ExportResult
    from captioning.storage import Location


class FormatName(StrEnum):
    """The formats."""

    txt = "txt"
    imagefolder = "imagefolder"
    coco = "coco"
    webdataset = "webdataset"


class ImagesChoice(StrEnum):
    """What happens to the images."""

    copy = "copy"
    link = "link"
    none = "none"


class ErrorsChoice(StrEnum):
    """What happens to error rows."""

    skip = "skip"
    include = "include"


def export(
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="The run: what `caption` was given with -o.", show_default=False)
    ],
    kind: Annotated[
        FormatName,
        typer.Option("--format", "-f", help="The format; see above.", show_default=False),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="URI",
            help="Where the export goes: a folder or any fsspec URI (for coco also a .json file).",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        ImagesChoice,
        typer.Option(
            "--images",
            help="imagefolder: copy the images, link them (local files), or write the metadata alone.",
        ),
    ] = ImagesChoice.copy,
    shard_size: Annotated[
        int, typer.Option("--shard-size", metavar="N", min=1, help="webdataset: images per tar.")
    ] = 1000,
    beside: Annotated[
        bool, typer.Option("--beside", help="txt: put each file beside its image (local archives), without -o.")
    ] = False,
    errors: Annotated[
        ErrorsChoice, typer.Option("--errors", help="Skip images that failed, or include them without a caption.")
    ] = ErrorsChoice.skip,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files that no earlier export wrote.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Export the rows that an unfinished run has so far.")
    ] = False,
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Export a run's captions in a format that other tools read.

    txt: a .txt file for every image, in folders like the archive's, or beside the images.

    imagefolder: the images with a metadata.jsonl, for Hugging Face load_dataset("imagefolder").

    coco: one JSON file of images and captions, for pycocotools and other readers of COCO.

    webdataset: tars of image, .txt and .json, for streaming into training.

    After a kill, the same command resumes; after `retry` it rewrites only what changed.
    Examples:

    python -m jobs export build/pictures --format txt --beside

    python -m jobs export build/pictures --format webdataset -o s3://bucket/pictures-captioned
    """
    from captioning.run.export.base import ExportOptions
    from captioning.run.export.exporter import export_table
    from captioning.run.layout import RunLayout
    from captioning.storage import Location, StorageSettings
    from jobs.driving.storage import storage_of_run
    from jobs.export_settings import ExportSettings
    from jobs.lean_arrow import lean_arrow
    from jobs.progress import Progress, counted
    from jobs.verb_settings import read_verb_settings

    lean_arrow()
    given = read_verb_settings(ExportSettings, config, settings).storage
    layout = RunLayout(Location.parse(output, given or StorageSettings()))
    target = Location.parse(to, given or StorageSettings()) if to is not None else None
    with Progress(0, noun="row") as progress:

        def tell(done: int, total: int) -> None:
            progress.total = total
            progress.add(done - progress.done, 0)

        result = export_table(
            layout,
            kind.value,
            target,
            ExportOptions(
                errors=errors.value,
                images=images.value,
                shard_size=shard_size,
                beside=beside,
                overwrite=overwrite,
                storage=given or storage_of_run(layout),
            ),
            partial=partial,
            progress=tell,
        )
    for line in _lines(result, target):
        print(line)
    missing = result.counts.missing
    if missing:
        raise UnfinishedError(
            f"{counted(missing, 'image')} could no longer be read and {'is' if missing == 1 else 'are'} not in the "
            "export. Run the same command again once this is fixed."
        )


def _lines(result: "ExportResult", target: "Location | None") -> list[str]:
    """Lines to show to the user at the end."""
    from jobs.progress import counted

    counts = result.counts
    place = "the images" if target is None else str(target)
    before = f", {result.before:,} rows already done" if result.before else ""
    lines = [f"{counted(counts.written, 'image')} with a caption in {place}{before}."]
    if counts.errors:
        lines.append(f"{counted(counts.errors, 'image')} failed and {'was' if counts.errors == 1 else 'were'} skipped.")
    if counts.kept:
        lines.append(
            f"Kept {counted(counts.kept, 'existing .txt file')} with other content; --overwrite replaces such files."
        )
    if result.pending:
        lines.append(
            f"{counted(result.pending, 'image')} without a row yet: run the same command again once they have one."
        )
    return [*lines, *result.lines]
