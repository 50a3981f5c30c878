"""A captioner on disk: `config.json`, `model.safetensors`, tokenizer files and a model card.

Reads and writes folders on a local disk. Where a checkpoint comes from is `refs.py`'s business.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioning.config import build, to_dict
from captioning.data.preprocess import PreprocessSettings
from captioning.data.tokenizers import Tokenizer
from captioning.decoding.settings import DecodingSettings
from captioning.errors import CheckpointError, SettingsError
from captioning.models.base import CaptionModel, Vocabulary
from captioning.models.registry import ModelSettings, build_model

FORMAT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"


@dataclass(frozen=True)
class CheckpointConfig:
    """What `config.json` says: everything about a captioner but its weights and words."""

    #: Architecture and preprocessing as written: a setting that a later version adds does not change them.
    written: Mapping[str, Any]
    architecture: Any
    preprocess: PreprocessSettings
    decoding: DecodingSettings
    #: How it was made: data, recipe, scores. For people; nothing is computed from it.
    provenance: Mapping[str, Any]


def save_checkpoint(
    folder: Path,
    model: CaptionModel,
    tokenizer: Tokenizer,
    preprocess: PreprocessSettings,
    decoding: DecodingSettings,
    *,
    weights: Mapping[str, Tensor] | None = None,
    provenance: Mapping[str, Any] | None = None,
    card: str | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write a captioner to `folder`, which is made. `weights` stand in for the model's own (averaged ones, say)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    state = model.plain_state(weights if weights is not None else model.state_dict())
    # Tied weights are one tensor under several names; safetensors wants each once, the model ties them again.
    tied = set(tied_names(model))
    to = getattr(torch, dtype)
    tensors = {
        name: (value.to(to) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in state.items()
        if name not in tied
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "format_version": FORMAT_VERSION,
        "architecture": to_dict(model.plain_settings),
        "preprocess": to_dict(preprocess),
        "decoding": to_dict(decoding),
        "provenance": dict(provenance or {}),
    }
    if card is not None:
        (folder / CARD).write_text(card, encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(folder: Path) -> CheckpointConfig:
    """What the checkpoint in `folder` is, without its weights. Raises `CheckpointError`."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint of a captioner: it has no {CONFIG}.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict) or "architecture" not in values:
        raise CheckpointError(
            f"{folder} is not a checkpoint of a captioner: its {CONFIG} names no architecture. "
            "Train one with `python -m jobs train`."
        )
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {values.get('format_version')!r}; "
            f"this version of Captioning reads {FORMAT_VERSION}."
        )
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"The checkpoint {folder} has no {WEIGHTS}.")
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


def load_model(folder: Path, config: CheckpointConfig, tokenizer: Tokenizer) -> CaptionModel:
    """The model of the checkpoint in `folder`, in float32, trainable as its settings say. Raises `CheckpointError`."""
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    model = build_model(config.architecture, vocabulary, config.preprocess, pretrained=False)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}.") from error
    try:
        missing, unexpected = model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in weights.items()},
            strict=False,
        )
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {error}") from error
    missing = [name for name in missing if name not in tied_names(model)]
    if missing or unexpected:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit its {CONFIG}: missing {missing[:3]}, unexpected {unexpected[:3]}."
        )
    return model


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights and of each tokenizer file: what a checkpoint's identity rests on."""
    hashes = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in (CONFIG, CARD) and not path.name.startswith("."):
            with path.open("rb") as file:
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def tied_names(model: CaptionModel) -> list[str]:
    """Names of tensors that share their storage with one of an earlier name."""
    seen: dict[tuple[int, torch.Size], str] = {}
    tied = []
    for name, value in model.state_dict(keep_vars=True).items():
        # What is spread over processes has no storage of its own.
        key = (value.data_ptr() or id(value), value.shape)
        if value.numel() and key in seen:
            tied.append(name)
        else:
            seen[key] = name
    return tied
