"""A checkpoint's metadata: its `config.json`, the names of its files, and their hashes.

Loads no weights and does not import PyTorch, so that describing a captioner is quick.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from captioning.config import build
from captioning.data.preprocess import PreprocessSettings
from captioning.data.tokenizer_files import TOKENIZER_FILES
from captioning.decoding.settings import DecodingSettings
from captioning.errors import CheckpointError, SettingsError
from captioning.models.registry import ModelSettings

FORMAT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"


@dataclass(frozen=True)
class CheckpointConfig:
    """The contents of `config.json`: everything about a captioner but its weights and vocabulary."""

    #: Architecture and preprocessing as in the file, without defaults that later versions add.
    written: Mapping[str, Any]
    architecture: Any
    preprocess: PreprocessSettings
    decoding: DecodingSettings
    #: How the captioner was made: data, recipe, scores. For people only.
    provenance: Mapping[str, Any]


def read_config(folder: Path) -> CheckpointConfig:
    """Read the `config.json` of the checkpoint in `folder`. Raises `CheckpointError`."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is not a checkpoint of a captioner: it has no {CONFIG}. "
            "Pass a folder that has one, such as `best` in the OUTPUT of `train`."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy the checkpoint again.") from error
    if not isinstance(values, dict) or "architecture" not in values:
        raise CheckpointError(
            f"{folder} is not a checkpoint of a captioner: its {CONFIG} has no architecture. "
            "Train one with `python -m jobs train`."
        )
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {values.get('format_version')!r}; "
            f"this version of Captioning reads {FORMAT_VERSION}. Use the version that wrote it, or a newer one."
        )
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"The checkpoint {folder} has no {WEIGHTS}. Copy it again, with all of its files.")
    try:
        return CheckpointConfig(
            written={key: values.get(key, {}) for key in ("architecture", "preprocess")},
            architecture=build(TypeAdapter(ModelSettings), values["architecture"], where=str(path)),
            preprocess=build(PreprocessSettings, values.get("preprocess", {}), where=str(path)),
            decoding=build(DecodingSettings, values.get("decoding", {}), where=str(path)),
            provenance=values.get("provenance", {}),
        )
    except SettingsError as error:
        raise CheckpointError(f"The checkpoint {folder} cannot be used. {error}") from error


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights and of each tokenizer file, which identify a checkpoint."""
    hashes = {}
    for name in sorted((WEIGHTS, *TOKENIZER_FILES)):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
