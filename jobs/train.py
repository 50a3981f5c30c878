"""The verb `train`: a captioner made from training shards, on as many workers as the settings ask.

How its workers are started is `training.fit`'s; what they do is `captioning.training`'s.
"""

from typing import Annotated, Any

import typer

from jobs.cli import ConfigOption, SetOption
from jobs.verb_settings import read_verb_settings

#: Fewer images to validate on are told of.
_FEW = 10


def train(
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUTPUT", help="Folder or URI of the run.")],
    config: ConfigOption = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="URI", help="Training shards; over the setting `data`.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Train a captioner on the shards that `prepare` made. OUTPUT/best is its checkpoint.

    Stopped for whatever reason, the same command goes on from the last saved state. What happens is in
    OUTPUT/report.html, a page that is written anew at each evaluation, and in OUTPUT/metrics.jsonl. All
    settings are in configs/README.md. Examples:

    python -m jobs train --config configs/train/flickr-lstm.yaml --data build/shards -o build/flickr-lstm

    python -m jobs train --config configs/train/fine-tune.yaml --data build/mine --set init=flickr-lstm -o build/mine-1
    """
    from captioning.data.shards import ShardSet
    from captioning.errors import UsageError
    from captioning.storage import Location
    from captioning.training.output import alone, check, is_finished
    from captioning.training.settings import TrainSettings

    overrides = [*(set_ or []), *([f"data={data}"] if data else [])]
    settings = read_verb_settings(TrainSettings, config, overrides)
    if not settings.data:
        raise UsageError("There is nothing to train on: give --data URI, a folder of shards that `prepare` made.")
    shards = ShardSet.open(Location.parse(settings.data, settings.storage))
    for split in dict.fromkeys(stage.validation.split for stage in settings.in_stages()):
        _check_splits(shards, split)
    place = Location.parse(output, settings.storage)
    check(place, settings, shards)
    if is_finished(place):
        print(f"This run is finished: its captioner is {place / 'best'}. Nothing to do.")
        return
    with alone(place):
        _run(settings, place, shards)


def _check_splits(shards: Any, validation: str) -> None:
    """See that there is something to learn from and something to judge by; says so where it is little."""
    from captioning.errors import InputError
    from jobs.preparing.run import enough_to_validate

    shards.split("train")
    images = sum(shards.counts.values())
    # Words that all images' references share count nothing in CIDEr-D: of one image, all of them.
    if shards.counts.get(validation, 0) < 2:
        having = ", ".join(f"{split} {count:,}" for split, count in shards.counts.items())
        raise InputError(
            f"Training is judged by the captions of the split {validation!r}, and {shards.location} has fewer than two "
            f"images there ({having}). Prepare the dataset again, into another folder, with --set "
            f"val_fraction={enough_to_validate(images)} or with a column `split` in its table; or name another split: "
            "--set validation.split=NAME."
        )
    count = shards.counts[validation]
    if count < _FEW:
        print(
            f"Note: {validation!r} has only {count} images. They decide which weights are kept, and their scores jump "
            f"with every word. More of them: prepare with --set val_fraction={enough_to_validate(images)}."
        )


def _run(settings: Any, output: Any, shards: Any) -> None:
    from jobs.ray_session import ray_session
    from jobs.training.fit import fit
    from jobs.training.page import TrainPage
    from jobs.training.progress import Teller

    counts = ", ".join(f"{count:,} {split}" for split, count in shards.counts.items())
    print(f"Training on {shards.dataset} ({counts} images), {settings.workers} worker(s); the run is {output}")
    page = TrainPage(output, shards, settings.validation.split)
    with ray_session(), Teller(output, page):
        fit(settings, output)
    print(f"Done. The captioner: {output / 'best'}   figures: {output / 'metrics.jsonl'}   page: {page.file}")
    print(f"Try it: python -m jobs caption FOLDER -o OUTPUT --model {output / 'best'}")
