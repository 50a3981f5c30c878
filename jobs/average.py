"""The verb `average`: averages the weights of several checkpoints of one architecture into a new checkpoint."""

import tempfile
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import typer

from captioning.config import settings
from captioning.errors import RunConflictError, StorageError, UsageError
from captioning.storage import Location, StorageSettings
from jobs.cli import ConfigOption, SetOption
from jobs.verb_settings import read_verb_settings


@settings
class AverageSettings:
    """The settings of `average`."""

    save_dtype: Literal["float32", "float16"] = "float32"
    """Number format of the saved weights; float16 halves the file."""

    storage: StorageSettings = field(default_factory=StorageSettings)


def average(
    refs: Annotated[
        list[str], typer.Argument(metavar="REF…", help="Two or more checkpoints of one architecture and vocabulary.")
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FOLDER", help="The new checkpoint's folder, which must not exist yet."),
    ],
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,…", help="One weight per checkpoint, such as 0.7,0.3. Without it: equal weights."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Average the weights of checkpoints that were trained from the same start (a model soup).

    Vocabulary, preprocessing and decoding are those of the first. Settings: save_dtype, storage.*.

    Example:

    python -m jobs average build/one/best build/two/best -o build/average --weights 0.5,0.5
    """
    from captioning.models.average import Source, average_checkpoints
    from captioning.models.checkpoint_config import CONFIG
    from captioning.refs import resolve

    parsed = read_verb_settings(AverageSettings, config, set_)
    numbers = _parse_weights(weights, len(refs))
    place = _empty_output(output, parsed)
    found = [resolve(ref, parsed.storage) for ref in refs]
    sources = [Source(name, folder, weight) for (name, folder), weight in zip(found, numbers, strict=True)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        average_checkpoints(sources, folder, name=place.name or "average", dtype=parsed.save_dtype)
        # The config goes last: it makes the folder a checkpoint.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
            (place / path.name).write_bytes(path.read_bytes())
    total = sum(numbers)
    for source in sources:
        print(f"{source.weight / total:6.1%}  {source.name}")
    print(f"Wrote {place}")


def _parse_weights(weights: str | None, count: int) -> list[float]:
    if count < 2:
        raise UsageError("An average needs two checkpoints or more: pass another REF.")
    if weights is None:
        return [1.0] * count
    try:
        numbers = [float(number) for number in weights.split(",")]
    except ValueError:
        raise UsageError(f"--weights {weights!r} is not a list of numbers such as 0.7,0.3.") from None
    if len(numbers) != count:
        raise UsageError(f"--weights has {len(numbers)} numbers for {count} checkpoints: pass one for each.")
    return numbers


def _empty_output(output: str, parsed: AverageSettings) -> Location:
    place = Location.parse(output, parsed.storage)
    if place.info() is not None or place.names():
        raise RunConflictError(f"{place} is not empty. Choose another FOLDER with -o.")
    try:
        place.check_writable()
    except StorageError as error:
        if error.transient:
            raise
        raise UsageError(f"-o {output} cannot be written to: {error}") from error
    return place
