"""A captioner on disk: `config.json`, `model.safetensors`, tokenizer files and a model card.

Reads and writes folders on a local disk. `checkpoint_config` reads what needs no weights, and `refs.py` fetches
checkpoints from elsewhere.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioning.config import to_dict
from captioning.data.preprocess import PreprocessSettings
from captioning.data.tokenizers import Tokenizer
from captioning.decoding.settings import DecodingSettings
from captioning.errors import CheckpointError
from captioning.models.base import CaptionModel, Vocabulary
from captioning.models.checkpoint_config import CARD, CONFIG, FORMAT_VERSION, WEIGHTS, CheckpointConfig
from captioning.models.registry import build_model

_BOTH = "The two do not belong together: copy both from the same checkpoint."


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
    """Write a captioner to `folder`, created if needed. `weights` replace the model's own (averaged ones, say)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    state = model.checkpoint_state(weights if weights is not None else model.state_dict())
    # Tied weights are one tensor under several names. safetensors takes each once, and the model ties them again.
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
        "architecture": to_dict(model.checkpoint_settings),
        "preprocess": to_dict(preprocess),
        "decoding": to_dict(decoding),
        "provenance": dict(provenance or {}),
    }
    if card is not None:
        (folder / CARD).write_text(card, encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_model(folder: Path, config: CheckpointConfig, tokenizer: Tokenizer) -> CaptionModel:
    """Load the checkpoint in `folder`, in float32, frozen as its settings say. Raises `CheckpointError`."""
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    model = build_model(config.architecture, vocabulary, config.preprocess, pretrained=False)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}. Copy the checkpoint again.") from error
    try:
        missing, unexpected = model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in weights.items()},
            strict=False,
        )
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {error}. {_BOTH}") from error
    missing = [name for name in missing if name not in tied_names(model)]
    if missing or unexpected:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit its {CONFIG}: missing {missing[:3]}, unexpected {unexpected[:3]}. {_BOTH}"
        )
    return model


def tied_names(model: CaptionModel) -> list[str]:
    """Names of tensors that share their storage with an earlier one."""
    seen: dict[tuple[int, torch.Size], str] = {}
    tied = []
    for name, value in model.state_dict(keep_vars=True).items():
        # Tensors sharded over processes have no storage of their own.
        key = (value.data_ptr() or id(value), value.shape)
        if value.numel() and key in seen:
            tied.append(name)
        else:
            seen[key] = name
    return tied
