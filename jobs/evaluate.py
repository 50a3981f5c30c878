"""The verb `evaluate`: captions a split of training shards and scores the captions against the references.

`evaluating.scored` captions and scores, `evaluating.search` is `--search`.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from captioning.errors import StorageError, UnfinishedError, UsageError
from captioning.storage import Location
from jobs.cli import ConfigOption, ModelOption, SetOption
from jobs.evaluating.settings import EvaluateSettings
from jobs.evaluating.table import name_of, show_scores
from jobs.verb_settings import read_verb_settings


def evaluate(
    data: Annotated[str, typer.Option("--data", metavar="URI", help="Shards that `prepare` made.")],
    model: ModelOption = None,
    split: Annotated[str, typer.Option(help="The split to caption.")] = "test",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="X.jsonl: a line per image, with its caption and references. X.json: the metrics.",
        ),
    ] = None,
    beams: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Beam sizes to compare (1 is greedy), such as 1,3,5."),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Try decoding settings and print the best. Use the validation split.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="With --search: make the best one the default of the checkpoint's folder.")
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Caption a split and print BLEU, ROUGE-L, CIDEr-D (METEOR where Java and its extra are), R@1 and R@10.

    Settings: decoding.* over the captioner's own, images, meteor, people, search.*, batch_size, device, precision,
    encoder, storage.*.

    Example:

    python -m jobs evaluate --data build/shards --beams 1,3 -o build/captions.jsonl
    """
    from captioning.captioner_info import inspect_captioner
    from captioning.data.shards import ShardSet
    from captioning.metrics.meteor import is_available, require
    from jobs.evaluating.scored import as_json, as_lines, evaluate_split, people_of
    from jobs.evaluating.search import evaluate_search, folder_to_save

    parsed = read_verb_settings(EvaluateSettings, config, set_)
    _check_options(search, save, beams, output)
    place = None if output is None else _output(output, parsed)
    shards = ShardSet.open(Location.parse(data, parsed.storage))
    shards.split(split)
    meteor = is_available() if parsed.meteor == "auto" else parsed.meteor
    if meteor:
        require()
    # Report errors in the captioner or the settings before loading its weights.
    folder = folder_to_save(model) if save else None
    decodings = (
        [parsed.decoding] if search else [_decoding(parsed.decoding, size) for size in _beam_sizes(beams, parsed)]
    )
    for decoding in decodings:
        inspect_captioner(model, decoding=decoding, precision=parsed.precision, storage=parsed.storage)
    from captioning.captioner import load_captioner

    captioner = load_captioner(
        model,
        device=parsed.device,
        precision=parsed.precision,
        encoder=parsed.encoder,
        cuda_graphs=parsed.cuda_graphs,
        decoding=parsed.decoding if search else None,
        storage=parsed.storage,
    )
    about = {"model": captioner.name, "data": data, "split": split}
    no_people: str | None = None
    if search:
        record = evaluate_search(captioner, shards, split, parsed.search, parsed.batch_size, folder)
        written = json.dumps({**about, "decoding_search": record}, indent=2, ensure_ascii=False) + "\n"
    else:
        evaluations = evaluate_split(captioner, shards, split, decodings, parsed, meteor)
        print(f"{captioner.name} on the {split} split of {data}: {evaluations[0].scores.num_images:,} images")
        people, no_people = people_of(evaluations[0], parsed)
        show_scores([(name_of(each.decoding), each.scores.summary()) for each in evaluations], people)
        lines = place is not None and place.name.endswith(".jsonl")
        written = as_lines(evaluations) if lines else as_json(about, evaluations, people)
    if place is not None:
        place.write_text(written)
        print(f"Wrote {place}")
    if no_people is not None and parsed.people is True:
        raise UnfinishedError(f"The captioner is scored, but {no_people}")


def _check_options(search: bool, save: bool, beams: str | None, output: str | None) -> None:
    """Raise `UsageError` for options that exclude each other."""
    if save and not search:
        raise UsageError("--save saves what --search finds: pass --search as well.")
    if search and beams is not None:
        raise UsageError("--search and --beams exclude each other: the beam sizes to search are search.beam_sizes.")
    if search and output is not None and output.endswith(".jsonl"):
        raise UsageError(f"-o {output}: a search writes its table, not captions. Use a name that ends in .json.")


def _beam_sizes(beams: str | None, parsed: EvaluateSettings) -> list[int | None]:
    """The beam sizes of `--beams`; None stands for the captioner's own."""
    if beams is None:
        return [None]
    if "beam_size" in parsed.decoding:
        raise UsageError("--beams and decoding.beam_size set the same thing: use only one of them.")
    try:
        sizes = [int(size) for size in beams.split(",")]
    except ValueError:
        raise UsageError(f"--beams {beams!r} is not a list of whole numbers such as 1,3,5.") from None
    return list(dict.fromkeys(sizes))


def _decoding(given: Mapping[str, Any], size: int | None) -> dict[str, Any]:
    """The settings that override the captioner's decoding. Only the best caption is scored."""
    return {**given, "num_captions": 1, **({} if size is None else {"beam_size": size})}


def _output(output: str, parsed: EvaluateSettings) -> Location:
    if not output.endswith((".json", ".jsonl")):
        raise UsageError(f"-o {output} must end in .jsonl (one line per image) or .json (the metrics).")
    place = Location.parse(output, parsed.storage)
    try:
        place.parent.check_writable()
    except StorageError as error:
        if error.transient:
            raise
        raise UsageError(f"-o {output} cannot be written: {error}") from error
    return place
