"""Checkpoints are loaded as they were saved, and damage is explained."""

import json
from pathlib import Path

import pytest
import torch

from captioning.data.tokenizers import load_tokenizer
from captioning.errors import CheckpointError
from captioning.models.checkpoint import load_model, save_checkpoint
from captioning.models.checkpoint_config import read_config
from tests.tiny import PREPROCESS, save_tiny_captioner, tiny_model, tiny_tokenizer


def test_a_captioner_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    folder = save_tiny_captioner(tmp_path / "one")
    config = read_config(folder)
    assert config.preprocess == PREPROCESS
    assert config.decoding.beam_size == 2
    model = load_model(folder, config, load_tokenizer(folder))
    for (name, one), (other_name, other) in zip(
        tiny_model().state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other)
    assert not list(folder.glob("*.pt")) + list(folder.glob("*.bin")) + list(folder.glob("*.pkl"))


def test_half_precision_on_disk_is_full_in_memory(tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path,
        tiny_model(),
        tiny_tokenizer(),
        PREPROCESS,
        read_config(save_tiny_captioner(tmp_path / "x")).decoding,
        dtype="float16",
    )
    model = load_model(tmp_path, read_config(tmp_path), load_tokenizer(tmp_path))
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * (tmp_path / "x" / "model.safetensors").stat().st_size


def damage_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damage_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        read_config(tmp_path)
    folder = save_tiny_captioner(tmp_path / "one")
    damage_config(folder, format_version=99)
    with pytest.raises(CheckpointError, match="format version 99"):
        read_config(folder)
    damage_config(folder, format_version=1, preprocess={"size": "big"})
    with pytest.raises(CheckpointError, match="size"):
        read_config(folder)
    folder = save_tiny_captioner(tmp_path / "two")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(folder, read_config(folder), load_tokenizer(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model.safetensors"):
        read_config(folder)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_captioner(tmp_path / "one")
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    damage_config(folder, architecture={**architecture, "hidden_size": 32})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(folder, read_config(folder), load_tokenizer(folder))
    damage_config(folder, architecture={**architecture, "attention": False})
    with pytest.raises(CheckpointError, match="unexpected"):
        load_model(folder, read_config(folder), load_tokenizer(folder))
