"""The verb `prepare`: training shards of a dataset's images and captions."""

from typing import Annotated

import typer

from jobs.cli import ConfigOption, SetOption
from jobs.preparing.settings import PrepareSettings
from jobs.verb_settings import read_verb_settings


def prepare(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="The format of the captions: flickr30k, coco or csv.")
    ],
    images: Annotated[str, typer.Option(metavar="DIR", help="The folder or URI of the images.")],
    captions: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="flickr30k: results.csv (image| number| caption), captions.txt with commas, or Karpathy's JSON. "
            "coco: an annotations JSON, or Karpathy's. csv: a table with the columns image and caption "
            "(and split, if you have one), a line per caption.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="URI", help="Where to write the shards.")],
    splits: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Karpathy's JSON, which says which image is in train, val or test. Without it: the split that "
            "the captions' file gives, or else a fixed share in val (see the setting val_fraction).",
        ),
    ] = None,
    config: ConfigOption = None,
    set_values: SetOption = None,
) -> None:
    """Make training shards (WebDataset tars) of a dataset's images and captions.

    One sample is an image with all its captions. Problems in the dataset are listed, not fatal.
    Settings: shard_samples, val_fraction, jpeg_quality, storage.*. Examples:

    python -m jobs prepare csv --images photos --captions captions.csv -o build/mine --set val_fraction=0.2

    python -m jobs prepare flickr30k --images DIR --captions results.csv --splits dataset.json -o build/shards
    """
    from jobs.preparing.run import prepare_dataset

    options = read_verb_settings(PrepareSettings, config, set_values)
    prepare_dataset(dataset, images, captions, splits, output, options)
