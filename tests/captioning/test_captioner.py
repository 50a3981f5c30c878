"""The captioner: images in whatever form, settings overridden, identity without weights."""

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

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
    captions = captioner.caption([path, str(path), path.read_bytes(), image, np.asarray(image.convert("RGB"))])
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


def test_decoding_is_overridden_for_a_call_or_at_loading(captioner: Captioner, folder: Path) -> None:
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    assert len(captioner.caption_pixels(pixels, beam_size=4, num_captions=3)[0].alternatives) == 3
    assert load_captioner(str(folder), decoding={"beam_size": 4}).decoding.beam_size == 4
    with pytest.raises(SettingsError, match="beam_sise"):
        captioner.caption_pixels(pixels, beam_sise=4)


def test_a_prompt_begins_the_caption(captioner: Captioner) -> None:
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    assert captioner.caption_pixels(pixels, prompt="a red")[0].text.lower().startswith("a red")


def test_other_values_than_images_are_refused(captioner: Captioner, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ImageError):
        captioner.caption([tmp_path / "text.jpg"])
    with pytest.raises(ValueError, match="uint8"):
        captioner.caption([np.zeros((3, 4), np.float32)])
    with pytest.raises(TypeError, match="uint8"):
        captioner.caption_pixels(np.zeros((1, 32, 32, 3), np.float32))
    with pytest.raises(TypeError, match="not BytesIO"):
        captioner.caption([io.BytesIO(b"")])
    with pytest.raises(TypeError, match="is an address"):
        captioner.caption(["https://example.com/photo.jpg"])
    with pytest.raises(SettingsError, match="at least 1"):
        captioner.caption([np.zeros((3, 4, 3), np.uint8)], batch_size=0)
    assert captioner.caption([]) == []
    assert captioner.explain_pixels(np.zeros((0, 32, 32, 3), np.uint8)) == []


@pytest.mark.parametrize(
    "one", ["photo.jpg", Path("photo.jpg"), b"", np.zeros((3, 4, 3), np.uint8), PIL.Image.new("L", (1, 1))]
)
def test_one_image_is_no_list_of_images(captioner: Captioner, one: object) -> None:
    with pytest.raises(TypeError, match="list of images"):
        captioner.caption(one)


def test_an_image_that_cannot_be_decoded_is_named(captioner: Captioner, tmp_path: Path) -> None:
    good, bad = square("red", "top", 1), tmp_path / "bad.jpg"
    bad.write_bytes(good[:200])
    with pytest.raises(ImageError, match=r"Image 2 of 3 \(.*bad\.jpg\): ") as refused:
        captioner.caption([good, bad, good])
    assert refused.value.error_class == "truncated"


@pytest.mark.parametrize("encoder", ["auto", "onednn", "eager"])
def test_a_pickled_captioner_gives_the_same_captions(folder: Path, encoder: str) -> None:
    """Weights that oneDNN packed cannot be pickled: they are packed again."""
    captioner = load_captioner(str(folder), device="cpu", encoder=encoder)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = captioner.caption_pixels(pixels)
    for other in (pickle.loads(pickle.dumps(captioner)), copy.deepcopy(captioner)):
        assert other.encoder.name == captioner.encoder.name
        assert other.caption_pixels(pixels) == expected


def test_the_callers_autocast_does_not_change_captions(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    captioner = load_captioner(str(folder), device="cpu", encoder="onednn")
    expected = captioner.caption_pixels(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert captioner.caption_pixels(pixels) == expected
        assert load_captioner(str(folder), device="cpu", encoder="onednn").caption_pixels(pixels) == expected


def test_a_prompt_with_unknown_words_is_refused() -> None:
    with pytest.raises(SettingsError, match="no word for 'watercolor', 'zebu'"):
        inspect_captioner("flickr-lstm", decoding={"prompt": "a watercolor of a Zebu"})
    assert inspect_captioner("flickr-clip-gpt2", decoding={"prompt": "a watercolor of a castle"}).decoding.prompt


def test_identity_depends_on_weights_and_settings(folder: Path, tmp_path: Path) -> None:
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


def test_other_files_do_not_change_the_identity(folder: Path, tmp_path: Path) -> None:
    copy_of_it = save_tiny_captioner(tmp_path / "tiny")
    (copy_of_it / "LICENSE").write_text("Anybody may use it.")
    found, info = inspect_captioner(copy_of_it), inspect_captioner(folder)
    assert (found.name, found.identity) == (info.name, info.identity)


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


def test_a_missing_gpu_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="Unknown device"):
        load_captioner(str(folder), device="quantum")
    with pytest.raises(SettingsError, match="Unknown device 'meta'"):
        load_captioner(folder, device="meta")


def test_an_unknown_precision_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="fp32, bf16, int8"):
        load_captioner(folder, precision="fp16")
