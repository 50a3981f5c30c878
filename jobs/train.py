"""The verb `train`: trains a captioner on training shards, with as many workers as the settings say.

`training.fit` starts the workers; `captioning.training` is what they run.
"""

from typing import Annotated, Any

import typer

from jobs.cli import ConfigOption, SetOption
from jobs.verb_settings import read_verb_settings

#: With fewer validation images than this a note is printed.
_FEW_IMAGES = 10


def train(
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUTPUT", help="Folder or URI of the run.")],
    config: ConfigOption = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="URI", help="Training shards; overrides the setting `data`.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Train a captioner on the shards that `prepare` made. OUTPUT/best is its checkpoint.

    If training stops for any reason, the same command resumes from the last saved state. Progress is in
    OUTPUT/report.html, a page that is updated at each validation, and in OUTPUT/metrics.jsonl. All
    settings are in configs/README.md. Examples:

    python -m jobs train --config configs/train/flickr-lstm.yaml --data build/shards -o build/flickr-lstm

    python -m jobs train --config configs/train/fine-tune.yaml --data build/mine --set init=flickr-lstm -o build/mine-1
    """
    from captioning.data.shards import ShardSet
    from captioning.errors import UsageError
    from captioning.storage import Location
    from captioning.training.output import check_output, is_finished, lock_output
    from captioning.training.settings import TrainSettings

    overrides = [*(set_ or []), *([f"data={data}"] if data else [])]
    settings = read_verb_settings(TrainSettings, config, overrides)
    if not settings.data:
        raise UsageError("There is nothing to train on: pass --data URI, a folder of shards that `prepare` made.")
    shards = ShardSet.open(Location.parse(settings.data, settings.storage))
    for split in dict.fromkeys(stage.validation.split for stage in settings.stage_settings()):
        _check_splits(shards, split)
    place = Location.parse(output, settings.storage)
    check_output(place, settings, shards)
    if is_finished(place):
        print(f"Nothing to do: this run is finished. Its captioner is {place / 'best'}.")
        return
    with lock_output(place):
        _run(settings, place, shards)


def _check_splits(shards: Any, validation: str) -> None:
    """Raise `InputError` if there is too little to train or validate on; print a note if there is little."""
    from captioning.errors import InputError
    from jobs.preparing.run import enough_to_validate

    shards.split("train")
    images = sum(shards.counts.values())
    # CIDEr-D gives no weight to words in the references of all images: with a single image, to none at all.
    if shards.counts.get(validation, 0) < 2:
        having = ", ".join(f"{split} {count:,}" for split, count in shards.counts.items())
        raise InputError(
            f"Training is validated on the split {validation!r}, and {shards.location} has fewer than two images in it "
            f"({having}). Prepare the dataset again, into another folder, with --set "
            f"val_fraction={enough_to_validate(images)} or with a column `split` in its table; or use another split: "
            "--set validation.split=NAME."
        )
    count = shards.counts[validation]
    if count < _FEW_IMAGES:
        print(
            f"Note: {validation!r} has only {count} images. They decide which weights are kept, and scores on so few "
            f"are noisy. For more, prepare with --set val_fraction={enough_to_validate(images)}."
        )


def _run(settings: Any, output: Any, shards: Any) -> None:
    from jobs.ray_session import ray_session
    from jobs.training.fit import fit
    from jobs.training.page import TrainPage
    from jobs.training.progress import TrainProgress

    counts = ", ".join(f"{count:,} {split}" for split, count in shards.counts.items())
    print(f"Training on {shards.dataset} ({counts} images) with {settings.workers} worker(s). OUTPUT: {output}")
    page = TrainPage(output, shards, settings.validation.split)
    with ray_session(), TrainProgress(output, page):
        fit(settings, output)
    print(f"Done. Captioner: {output / 'best'}   metrics: {output / 'metrics.jsonl'}   page: {page.file}")
    print(f"Try it: python -m jobs caption FOLDER -o OUTPUT --model {output / 'best'}")
