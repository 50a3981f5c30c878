"""The captioner: images in whatever form, settings overridden, identity without weights."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from captioning import Captioner, load_captioner
from captioning.captioner_info import inspect_captioner
from captioning.decoding.settings import DecodingSettings
from captioning.errors import CheckpointError, ImageError, SettingsError
from tests.tiny import save_tiny_captioner, square


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_captioner(tmp_path_factory.mktemp("captioner") / "tiny")


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Captioner:
    return load_captioner(str(folder), device="cpu")


def test_paths_arrays_and_images_give_one_caption(captioner: Captioner, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(square("red", "top", 1))
    image = PIL.Image.open(io.BytesIO(path.read_bytes()))
    captions = captioner.caption([path, str(path), image, np.asarray(image.convert("RGB"))])
    assert len({caption.text for caption in captions}) == 1
    assert captions[0].text
    assert captions[0].score < 0
    assert captions[0].alternatives[0] == (captions[0].text, captions[0].score)


def test_captions_do_not_depend_on_the_batch(captioner: Captioner) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    together = captioner.caption_pixels(pixels, batch_size=7)
    apart = captioner.caption_pixels(pixels, batch_size=2)
    assert [c.text for c in together] == [c.text for c in apart]
    assert [c.score for c in together] == pytest.approx([c.score for c in apart], abs=1e-4)


def test_decoding_is_overridden_for_a_call_or_for_good(captioner: Captioner, folder: Path) -> None:
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    assert len(captioner.caption_pixels(pixels, beam_size=4, num_captions=3)[0].alternatives) == 3
    assert load_captioner(str(folder), decoding={"beam_size": 4}).decoding.beam_size == 4
    with pytest.raises(SettingsError, match="beam_sise"):
        captioner.caption_pixels(pixels, beam_sise=4)


def test_a_prompt_begins_the_caption(captioner: Captioner) -> None:
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    assert captioner.caption_pixels(pixels, prompt="a red")[0].text.lower().startswith("a red")


def test_what_is_no_image_is_refused(captioner: Captioner, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ImageError):
        captioner.caption([tmp_path / "text.jpg"])
    with pytest.raises(SettingsError, match="uint8"):
        captioner.caption([np.zeros((3, 4), np.float32)])
    assert captioner.caption([]) == []


def test_identity_tells_weights_and_settings_apart(folder: Path, tmp_path: Path) -> None:
    info = inspect_captioner(str(folder))
    assert info.name.startswith("tiny-")
    assert info.identity == inspect_captioner(str(folder)).identity
    assert info.identity != inspect_captioner(str(folder), decoding={"beam_size": 1}).identity
    other = inspect_captioner(str(save_tiny_captioner(tmp_path / "tiny", seed=1)))
    assert other.identity != info.identity
    assert other.name != info.name
    same = inspect_captioner(str(save_tiny_captioner(tmp_path / "again" / "tiny")))
    assert (same.name, same.identity) == (info.name, info.identity)
    assert info.decoding == DecodingSettings(beam_size=2, max_new_tokens=6)


@pytest.mark.parametrize("ref", ["no-such-name", "./no/such/folder", "/no/such/folder"])
def test_unknown_captioners_are_refused(ref: str) -> None:
    with pytest.raises(CheckpointError, match="no captioner"):
        inspect_captioner(ref)


def test_the_hub_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="Without a network"):
        inspect_captioner("some-org/some-captioner@main")


def test_a_captioner_at_a_uri_is_fetched_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = inspect_captioner(f"file://{folder}")
    assert first.folder.is_relative_to(tmp_path)
    assert first.identity == inspect_captioner(str(folder)).identity
    before = (first.folder / "model.safetensors").stat().st_mtime_ns
    assert (inspect_captioner(f"file://{folder}").folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="nowhere cannot be read"):
        inspect_captioner(f"file://{tmp_path}/nowhere")


def test_an_absent_gpu_is_said(folder: Path) -> None:
    with pytest.raises(SettingsError, match="no device"):
        load_captioner(str(folder), device="quantum")
