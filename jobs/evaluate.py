"""The verb `evaluate`: captions a split of training shards and scores them against its references.

Captioning a split and scoring are those of training's validation; here they are asked for one or
several beam sizes and shown.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from annotated_types import Ge
from rich.console import Console
from rich.table import Table

from captioning.config import read_settings, settings, to_dict
from captioning.errors import StorageError, UsageError
from captioning.storage import Location, StorageSettings
from jobs.cli import ConfigOption, ModelOption, SetOption, read_config

if TYPE_CHECKING:
    from captioning.captioner import Captioner
    from captioning.data.shards import ShardSet
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

    batch_size: Annotated[int, Ge(1)] = 32
    """Images that go through the model together."""

    device: str = "auto"
    """`auto` takes a GPU when there is one; else cpu, cuda or cuda:N."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster where the hardware has it, and can change captions."""

    storage: StorageSettings = field(default_factory=StorageSettings)


@dataclass(frozen=True)
class Evaluation:
    """What one beam size brought."""

    decoding: Mapping[str, Any]
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
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Caption a split and print BLEU-1..4, ROUGE-L and CIDEr-D (METEOR too where Java and its extra are there).

    Settings: decoding.* over the captioner's own, images, meteor, batch_size, device, precision, storage.*.

    Example: python -m jobs evaluate --data build/shards --beams 1,3 -o build/captions.jsonl
    """
    from captioning.captioner import inspect_captioner, load_captioner
    from captioning.data.shards import ShardSet
    from captioning.metrics.meteor import is_available

    text, where = read_config(config)
    parsed = read_settings(EvaluateSettings, text, set_ or (), where=where)
    sizes = _beam_sizes(beams, parsed)
    place = None if output is None else _output(output, parsed)
    shards = ShardSet.open(Location.parse(data, parsed.storage))
    shards.split(split)
    meteor = is_available() if parsed.meteor == "auto" else parsed.meteor
    # What is wrong with the captioner or the settings is said before its weights are loaded.
    decodings = [_decoding(parsed.decoding, size) for size in sizes]
    for decoding in decodings:
        inspect_captioner(model, decoding=decoding, precision=parsed.precision, storage=parsed.storage)
    captioner = load_captioner(model, device=parsed.device, precision=parsed.precision, storage=parsed.storage)
    evaluations = _evaluate(captioner, shards, split, decodings, parsed, meteor)
    print(f"{captioner.name} on the {split} split of {data}: {evaluations[0].scores.num_images:,} images")
    _show(evaluations)
    if place is not None:
        about = {"model": captioner.name, "data": data, "split": split}
        place.write_text(_lines(evaluations) if place.name.endswith(".jsonl") else _summary(about, evaluations))
        print(f"Written: {place}")


def _evaluate(
    captioner: "Captioner",
    shards: "ShardSet",
    split: str,
    decodings: Sequence[Mapping[str, Any]],
    parsed: EvaluateSettings,
    meteor: bool,
) -> list[Evaluation]:
    from captioning.captioner import override_decoding
    from captioning.training.validation import describe, score
    from jobs.progress import Progress

    images = min(parsed.images or shards.counts[split], shards.counts[split])
    own = captioner.decoding
    evaluations: list[Evaluation] = []
    with Progress(images * len(decodings)) as progress:

        def tell(done: int) -> None:
            progress.add(len(evaluations) * images + done - progress.done, 0)

        for decoding in decodings:
            captioner.decoding = override_decoding(own, decoding)
            described = describe(
                captioner, shards, split, images=parsed.images, batch_size=parsed.batch_size, tell=tell
            )
            evaluations.append(Evaluation(to_dict(captioner.decoding), described, score(described, meteor=meteor)))
    captioner.decoding = own
    return evaluations


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


def _show(evaluations: Sequence[Evaluation]) -> None:
    names = {f"bleu_{order}": f"BLEU-{order}" for order in range(1, 5)}
    names |= {"rouge_l": "ROUGE-L", "cider_d": "CIDEr-D", "meteor": "METEOR"}
    names |= {"distinct": "distinct %", "mean_length": "words"}
    summaries = [evaluation.scores.summary() for evaluation in evaluations]
    shown = [name for name in names if name in summaries[0]]
    table = Table("decoding", *(names[name] for name in shown))
    for column in table.columns[1:]:
        column.justify = "right"
    for evaluation, summary in zip(evaluations, summaries, strict=True):
        size = evaluation.decoding["beam_size"]
        table.add_row("greedy" if size == 1 else f"beam {size}", *(f"{summary[name]:.1f}" for name in shown))
    console = Console()
    if not console.is_terminal:
        # In a file or a pipe nothing is narrow: a table is not folded to fit.
        console.width = 140
    console.print(table)


def _summary(about: Mapping[str, str], evaluations: Sequence[Evaluation]) -> str:
    rows = [{"decoding": evaluation.decoding, "metrics": evaluation.scores.summary()} for evaluation in evaluations]
    return json.dumps({**about, "evaluations": rows}, indent=2, ensure_ascii=False) + "\n"


def _lines(evaluations: Sequence[Evaluation]) -> str:
    lines = [
        {
            "image_id": described.key,
            "beam_size": evaluation.decoding["beam_size"],
            "caption": described.caption.text,
            "references": list(described.references),
            "score": described.caption.score,
            "num_tokens": described.caption.num_tokens,
            "cider_d": evaluation.scores.cider_d_of[described.key],
        }
        for evaluation in evaluations
        for described in evaluation.described
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
