"""The verb `evaluate`: captions a split of training shards and scores them against its references.

Captioning a split and scoring are those of training's validation; here they are asked for one or
several beam sizes and shown, beside what a person scores. `--search` goes to `evaluating.search`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from annotated_types import Ge

from captioning.backends.names import EncoderBackend, Precision
from captioning.config import settings, to_dict
from captioning.errors import InputError, StorageError, UnfinishedError, UsageError
from captioning.storage import Location, StorageSettings
from captioning.training.search_settings import SearchSettings
from jobs.cli import ConfigOption, ModelOption, SetOption
from jobs.evaluating.table import name_of, show_scores
from jobs.verb_settings import read_verb_settings

if TYPE_CHECKING:
    from captioning.captioner import Captioner
    from captioning.data.shards import ShardSet
    from captioning.decoding.settings import DecodingSettings
    from captioning.metrics.score import Scores
    from captioning.training.validation import Described


@settings
class EvaluateSettings:
    """Everything that `--config` and `--set` of `evaluate` can say."""

    decoding: dict[str, Any] = field(default_factory=dict)
    """Settings of the decoding laid over the captioner's own."""

    images: Annotated[int, Ge(1)] | None = None
    """Only the first so many images of the split; scores of different sets are not comparable."""

    meteor: bool | Literal["auto"] = "auto"
    """METEOR, which needs the extra `captioning[meteor]` and Java; `auto` computes it where both are there."""

    people: bool | Literal["auto"] = "auto"
    """What a person scores: one caption of each photo against its others; `auto` where every photo has two or
    more. METEOR of it, which takes five times as long as the captioner's, only where `meteor` is true."""

    search: SearchSettings = field(default_factory=SearchSettings)
    """What `--search` tries."""

    batch_size: Annotated[int, Ge(1)] = 32
    """Images that go through the model together."""

    device: str = "auto"
    """`auto` takes a GPU when there is one; else cpu, cuda or cuda:N."""

    precision: Precision = "fp32"
    """bf16 is faster where the hardware has it; int8, for the image encoder of CNNs, on any CPU. Both can change
    captions."""

    encoder: EncoderBackend = "auto"
    """What runs the image encoder on CPUs: auto, eager, onednn or compile; changes the speed alone."""

    cuda_graphs: bool = False
    """On a GPU, the steps of a CLIP-GPT2's decoder are recorded and played back instead of started kernel by kernel."""

    storage: StorageSettings = field(default_factory=StorageSettings)


@dataclass(frozen=True)
class Evaluation:
    """What one beam size brought."""

    decoding: "DecodingSettings"
    described: "Sequence[Described]"
    scores: "Scores"


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
            help="X.jsonl: a line an image, with its caption and references. X.json: the metrics.",
        ),
    ] = None,
    beams: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Beam sizes to compare (1 is greedy), such as 1,3,5."),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Try decodings and print which is best. Give the validation split.")
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
    from jobs.evaluating.search import evaluate_search, folder_to_save

    parsed = read_verb_settings(EvaluateSettings, config, set_)
    _check_together(search, save, beams, output)
    place = None if output is None else _output(output, parsed)
    shards = ShardSet.open(Location.parse(data, parsed.storage))
    shards.split(split)
    meteor = is_available() if parsed.meteor == "auto" else parsed.meteor
    if meteor:
        require()
    # What is wrong with the captioner or the settings is said before its weights are loaded.
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
        evaluations = _evaluate(captioner, shards, split, decodings, parsed, meteor)
        print(f"{captioner.name} on the {split} split of {data}: {evaluations[0].scores.num_images:,} images")
        people, no_people = _people(evaluations[0], parsed)
        show_scores([(name_of(each.decoding), each.scores.summary()) for each in evaluations], people)
        lines = place is not None and place.name.endswith(".jsonl")
        written = _lines(evaluations) if lines else _summary(about, evaluations, people)
    if place is not None:
        place.write_text(written)
        print(f"Written: {place}")
    if no_people is not None and parsed.people is True:
        raise UnfinishedError(f"The captioner is scored, but {no_people}")


def _evaluate(
    captioner: "Captioner",
    shards: "ShardSet",
    split: str,
    decodings: Sequence[Mapping[str, Any]],
    parsed: EvaluateSettings,
    meteor: bool,
) -> list[Evaluation]:
    from captioning.captioner_info import override_decoding
    from captioning.training.validation import describe_each, score
    from jobs.progress import Progress

    images = min(parsed.images or shards.counts[split], shards.counts[split])
    asked = [override_decoding(captioner.decoding, decoding) for decoding in decodings]
    with Progress(images * len(asked)) as progress:
        described = describe_each(
            captioner,
            shards,
            split,
            asked,
            images=parsed.images,
            batch_size=parsed.batch_size,
            tell=lambda done: progress.add(done - progress.done, 0),
        )
    return [
        Evaluation(decoding, each, score(each, meteor=meteor)) for decoding, each in zip(asked, described, strict=True)
    ]


def _people(evaluation: Evaluation, parsed: EvaluateSettings) -> tuple[dict[str, float] | None, str | None]:
    """What a person scores, where it is wanted; else None, and why it cannot be told."""
    from captioning.metrics.people import people_scores

    if parsed.people is False:
        return None, None
    references = {described.key: described.references for described in evaluation.described}
    try:
        return people_scores(references, meteor=parsed.meteor is True), None
    except InputError as error:
        return None, str(error)


def _check_together(search: bool, save: bool, beams: str | None, output: str | None) -> None:
    """Options that make no sense together."""
    if save and not search:
        raise UsageError("--save keeps what --search finds: give --search as well.")
    if search and beams is not None:
        raise UsageError("--search tries beam sizes of its own: leave --beams out, or set search.beam_sizes.")
    if search and output is not None and output.endswith(".jsonl"):
        raise UsageError(f"-o {output}: a search writes its table, not captions. Let the name end in .json.")


def _beam_sizes(beams: str | None, parsed: EvaluateSettings) -> list[int | None]:
    """The beam sizes asked for; None stands for the captioner's own."""
    if beams is None:
        return [None]
    if "beam_size" in parsed.decoding:
        raise UsageError("--beams and decoding.beam_size say the same thing: leave one of the two out.")
    try:
        sizes = [int(size) for size in beams.split(",")]
    except ValueError:
        raise UsageError(f"--beams {beams!r} is not a list of whole numbers such as 1,3,5.") from None
    return list(dict.fromkeys(sizes))


def _decoding(given: Mapping[str, Any], size: int | None) -> dict[str, Any]:
    """The decoding settings laid over the captioner's own. Only the best caption is scored."""
    return {**given, "num_captions": 1, **({} if size is None else {"beam_size": size})}


def _output(output: str, parsed: EvaluateSettings) -> Location:
    if not output.endswith((".json", ".jsonl")):
        raise UsageError(f"-o {output} must end in .jsonl (a line an image) or .json (the metrics).")
    place = Location.parse(output, parsed.storage)
    try:
        place.parent.check_writable()
    except StorageError as error:
        if error.passing:
            raise
        raise UsageError(f"-o {output} cannot be written: {error}") from error
    return place


def _summary(about: Mapping[str, str], evaluations: Sequence[Evaluation], people: Mapping[str, float] | None) -> str:
    rows = [{"decoding": to_dict(each.decoding), "metrics": each.scores.summary()} for each in evaluations]
    return json.dumps({**about, "evaluations": rows, "people": people}, indent=2, ensure_ascii=False) + "\n"


def _lines(evaluations: Sequence[Evaluation]) -> str:
    lines = [
        {
            "key": described.key,
            "image_id": described.image_id,
            "beam_size": evaluation.decoding.beam_size,
            "caption": described.caption.text,
            "references": list(described.references),
            "score": described.caption.score,
            "num_tokens": described.caption.num_tokens,
            "ended": described.caption.ended,
            "cider_d": evaluation.scores.cider_d_of[described.key],
            "own_rank": evaluation.scores.rank_of[described.key],
        }
        for evaluation in evaluations
        for described in evaluation.described
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
