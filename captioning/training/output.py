"""A training run's OUTPUT: whose it is, whether it is done, and the tokenizer that all its parts share."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captioning.config import to_dict
from captioning.data.shards import ShardSet
from captioning.data.tokenizers import Tokenizer, load_tokenizer
from captioning.errors import RunConflictError, StorageError, UsageError
from captioning.run.fingerprint import difference
from captioning.storage import Location
from captioning.training.loop import SUMMARY
from captioning.training.settings import TrainSettings
from captioning.training.state import is_leftover

RUN = "train.json"
_TOKENIZER = "tokenizer"
#: Settings that may change between the starts of one run: they change how it goes, not what it makes.
_FREE = frozenset(
    {"data", "text", "storage", "log_every_steps", "keep_states", "save_every_steps", "tensorboard", "gpu"}
)
_FREE |= {"threads_per_worker", "min_workers"}


def check(output: Location, settings: TrainSettings, shards: ShardSet) -> None:
    """See that `output` is this run's, or free to become it; writes nothing.

    Raises `RunConflictError` if it is another's, `UsageError` if it cannot be written to.
    """
    record = output / RUN
    if record.exists():
        try:
            theirs: dict[str, Any] = json.loads(record.read_text())
        except ValueError as error:
            raise UsageError(f"{record} is damaged ({error}). Choose another OUTPUT.") from error
        mine = _identity(settings, shards)
        if theirs != mine:
            lines = "\n  ".join(difference(theirs, mine))
            raise RunConflictError(
                f"{output} holds a training run with other settings or data:\n  {lines}\nUse them again to go on with "
                "it, or choose another OUTPUT; to train on from its best checkpoint: --set init=OUTPUT/best."
            )
        return
    if not all(map(is_leftover, output.names())):
        raise RunConflictError(f"{output} is not empty and holds no training run. Choose another OUTPUT.")
    try:
        output.check_writable()
    except StorageError as error:
        raise UsageError(f"OUTPUT {output} cannot be written to: {error.message} Give another one with -o.") from error


def claim(output: Location, settings: TrainSettings, shards: ShardSet, tokenizer: Tokenizer) -> None:
    """Make `output` this run's and keep its tokenizer there, unless both was done before.

    To be called when everything that the settings ask for could be made: from here on there is a
    run in OUTPUT, which other settings cannot go on with.
    """
    check(output, settings, shards)
    if not (output / RUN).exists():
        (output / RUN).write_text(json.dumps(_identity(settings, shards), indent=2, ensure_ascii=False) + "\n")
    if kept_tokenizer(output) is None:
        _keep_tokenizer(output, tokenizer)


@contextmanager
def alone(output: Location) -> Iterator[None]:
    """Keep other trainings of this machine and user out of `output`. Raises `RunConflictError` if there is one.

    Two would write each other's states. The lock goes with the process that holds it, however that ends.
    """
    name = hashlib.sha256(str(output).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"captioning-train-{os.getuid()}-{name}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunConflictError(
                f"A training is under way in {output}. Wait for it, stop it, or choose another OUTPUT."
            ) from error
        yield


def is_finished(output: Location) -> bool:
    """Whether the run has come to its end."""
    return (output / SUMMARY).exists()


def kept_tokenizer(output: Location) -> Tokenizer | None:
    """The run's tokenizer, if it has been made: once, for every worker and every restart."""
    if not (output / _TOKENIZER / "complete").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        (output / _TOKENIZER).download(Path(folder))
        return load_tokenizer(Path(folder))


def _keep_tokenizer(output: Location, tokenizer: Tokenizer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            (output / _TOKENIZER / path.name).write_bytes(path.read_bytes())
    (output / _TOKENIZER / "complete").write_text("")


def _identity(settings: TrainSettings, shards: ShardSet) -> dict[str, Any]:
    values = {key: value for key, value in to_dict(settings).items() if key not in _FREE}
    values["stages"] = [{key: value for key, value in stage.items() if key not in _FREE} for stage in values["stages"]]
    for part in (values, *values["stages"]):
        # Where features are kept changes nothing; that they are kept, as so many views, does.
        if "feature_cache" in part:
            part["feature_cache"] = part["feature_cache"] is not None
    data: dict[str, Any] = {"identity": shards.identity, "images": shards.counts}
    if settings.text is not None:
        try:
            text = Location.parse(settings.text, settings.storage).read_bytes()
        except StorageError as error:
            raise UsageError(f"text: the captions in {settings.text} cannot be read: {error.message}") from error
        data["text"] = hashlib.sha256(text).hexdigest()
    return {"settings": values, "data": data}
