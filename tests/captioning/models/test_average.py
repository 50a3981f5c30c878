"""The average of checkpoints: its weights, its metadata, and what it refuses."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from captioning.captioner import load_captioner
from captioning.data.tokenizers import WordTokenizer
from captioning.decoding.settings import DecodingSettings
from captioning.errors import CheckpointError, SettingsError
from captioning.models.average import Source, average_checkpoints
from captioning.models.checkpoint import save_checkpoint
from captioning.models.checkpoint_config import hash_files, read_config
from captioning.models.cnn_lstm_settings import CnnLstmSettings
from tests.tiny import PREPROCESS, save_tiny_captioner, tiny_model, tiny_settings, tiny_tokenizer


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    folders = [save_tiny_captioner(tmp_path / f"seed-{seed}", seed=seed) for seed in range(3)]
    return [Source(f"seed-{seed}", folder, 1.0) for seed, folder in enumerate(folders)]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def save(folder: Path, settings: CnnLstmSettings, tokenizer: WordTokenizer | None = None) -> Source:
    tokenizer = tokenizer or tiny_tokenizer()
    save_checkpoint(folder, tiny_model(settings, seed=5), tokenizer, PREPROCESS, DecodingSettings(max_new_tokens=6))
    return Source(folder.name, folder, 1.0)


def test_every_weight_is_the_weighted_mean(sources: list[Source], tmp_path: Path) -> None:
    weights = (2.0, 1.0, 1.0)
    given = [dataclasses.replace(source, weight=weight) for source, weight in zip(sources, weights, strict=True)]
    average_checkpoints(given, tmp_path / "average")
    parts = [tensors(source.folder) for source in sources]
    average = tensors(tmp_path / "average")
    assert average.keys() == parts[0].keys()
    changed = 0
    for key, value in average.items():
        if value.is_floating_point():
            expected = sum(weight / 4 * part[key].double() for weight, part in zip(weights, parts, strict=True))
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
            changed += not torch.equal(value, parts[0][key])
        else:
            assert torch.equal(value, parts[0][key])
    assert changed > 5


def test_the_average_of_equal_checkpoints_is_the_same_captioner(sources: list[Source], tmp_path: Path) -> None:
    average_checkpoints([sources[0], sources[0]], tmp_path / "average")
    for key, value in tensors(tmp_path / "average").items():
        assert torch.equal(value, tensors(sources[0].folder)[key]), key


def test_a_weight_of_zero_leaves_a_checkpoint_out(sources: list[Source], tmp_path: Path) -> None:
    average_checkpoints([sources[0], dataclasses.replace(sources[1], weight=0.0)], tmp_path / "average")
    folders = str(tmp_path / "average"), str(sources[0].folder)
    average, first = (load_captioner(folder, encoder="eager") for folder in folders)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8).numpy()
    assert average.caption_pixels(pixels) == first.caption_pixels(pixels)


def test_provenance_names_the_sources(sources: list[Source], tmp_path: Path) -> None:
    given = [dataclasses.replace(sources[0], weight=3.0), sources[1]]
    average_checkpoints(given, tmp_path / "average", name="soup")
    parts = read_config(tmp_path / "average").provenance["average"]
    assert [(part["name"], part["share"]) for part in parts] == [("seed-0", 0.75), ("seed-1", 0.25)]
    for part, source in zip(parts, given, strict=True):
        assert part["weights_sha256"] == hash_files(source.folder)["model.safetensors"]
    card = (tmp_path / "average" / "README.md").read_text(encoding="utf-8")
    assert "# soup" in card
    assert "| seed-0 | 0.75 |" in card


def test_half_precision_halves_the_file(sources: list[Source], tmp_path: Path) -> None:
    average_checkpoints(sources, tmp_path / "whole")
    average_checkpoints(sources, tmp_path / "half", dtype="float16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    load_captioner(str(tmp_path / "half"))


def test_training_settings_may_differ(tmp_path: Path) -> None:
    first = save(tmp_path / "first", tiny_settings())
    second = save(tmp_path / "second", tiny_settings(dropout=0.5, tune_from="all"))
    average_checkpoints([first, second], tmp_path / "average")
    assert read_config(tmp_path / "average").architecture.dropout == 0


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "first", tiny_settings())
    # The same shapes with another meaning.
    second = save(tmp_path / "second", dataclasses.replace(tiny_settings(), heads=4))
    with pytest.raises(CheckpointError, match=r"second cannot be averaged with first.*heads \(4, not 2\)"):
        average_checkpoints([first, second], tmp_path / "average")
    assert not (tmp_path / "average").exists()


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "first", tiny_settings())
    second = save(tmp_path / "second", tiny_settings(), WordTokenizer(sorted(tiny_tokenizer().words, reverse=True)))
    with pytest.raises(CheckpointError, match="tokenizers differ"):
        average_checkpoints([first, second], tmp_path / "average")


def test_other_preprocessing_is_refused(sources: list[Source], tmp_path: Path) -> None:
    path = sources[1].folder / "config.json"
    values = json.loads(path.read_text())
    values["preprocess"]["mode"] = "crop"
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="preprocessing"):
        average_checkpoints(sources, tmp_path / "average")


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0), (float("nan"), 1.0)])
def test_invalid_averaging_weights_are_refused(
    sources: list[Source], tmp_path: Path, weights: tuple[float, float]
) -> None:
    given = [dataclasses.replace(source, weight=weight) for source, weight in zip(sources, weights, strict=False)]
    with pytest.raises(SettingsError, match="weights of an average"):
        average_checkpoints(given, tmp_path / "average")
    with pytest.raises(SettingsError, match="two checkpoints"):
        average_checkpoints(sources[:1], tmp_path / "average")
