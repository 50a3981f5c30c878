"""A training run's OUTPUT: which run it belongs to, whether that is finished, and the tokenizer of all its workers."""

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
#: Settings that may change when a run is resumed: they do not change its result.
_RESUMABLE = frozenset(
    {"data", "text", "storage", "log_every_steps", "keep_states", "save_every_steps", "tensorboard", "gpu"}
    | {"threads_per_worker", "min_workers"}
)


def check_output(output: Location, settings: TrainSettings, shards: ShardSet) -> None:
    """Check that `output` belongs to this run or is empty, without writing to it.

    Raises `RunConflictError` if it belongs to another run, `UsageError` if it cannot be written to.
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
                f"{output} holds a training run with other settings or data:\n  {lines}\nUse them again to resume it, "
                "or choose another OUTPUT; to train on from its best checkpoint, pass --set init=OUTPUT/best."
            )
        return
    if not all(map(is_leftover, output.names())):
        raise RunConflictError(f"{output} is not empty and holds no training run. Choose another OUTPUT.")
    try:
        output.check_writable()
    except StorageError as error:
        raise UsageError(
            f"OUTPUT {output} cannot be written to: {error.message} Choose another OUTPUT with -o."
        ) from error


def claim_output(output: Location, settings: TrainSettings, shards: ShardSet, tokenizer: Tokenizer) -> None:
    """Record this run in `output` and save its tokenizer there, unless that is done.

    To be called once everything that the settings ask for has been built: from here on OUTPUT holds a run,
    which cannot be resumed with other settings.
    """
    check_output(output, settings, shards)
    if not (output / RUN).exists():
        (output / RUN).write_text(json.dumps(_identity(settings, shards), indent=2, ensure_ascii=False) + "\n")
    if load_run_tokenizer(output) is None:
        _save_run_tokenizer(output, tokenizer)


@contextmanager
def lock_output(output: Location) -> Iterator[None]:
    """Lock `output` against other training processes of this user and machine. Raises `RunConflictError` if locked.

    Two processes would overwrite each other's states. The operating system releases the lock when its process ends.
    """
    name = hashlib.sha256(str(output).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"captioning-train-{os.getuid()}-{name}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunConflictError(
                f"Another training run is using {output}. Wait for it to end, stop it, or choose another OUTPUT."
            ) from error
        yield


def is_finished(output: Location) -> bool:
    """Whether the run is finished."""
    return (output / SUMMARY).exists()


def load_run_tokenizer(output: Location) -> Tokenizer | None:
    """The tokenizer that this run was started with, or None before it is saved."""
    if not (output / _TOKENIZER / "complete").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        (output / _TOKENIZER).download(Path(folder))
        return load_tokenizer(Path(folder))


def _save_run_tokenizer(output: Location, tokenizer: Tokenizer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            (output / _TOKENIZER / path.name).write_bytes(path.read_bytes())
    (output / _TOKENIZER / "complete").write_text("")


def _identity(settings: TrainSettings, shards: ShardSet) -> dict[str, Any]:
    def without_resumable(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in _RESUMABLE}

    values = without_resumable(to_dict(settings))
    values["stages"] = [without_resumable(stage) for stage in values["stages"]]
    for part in (values, *values["stages"]):
        # The cache's location does not change the result; using one does, because it limits the views.
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
