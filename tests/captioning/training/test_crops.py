"""Crops of uncached images: the region of the view, close to Pillow's pixels; others are resized by Pillow."""

import io
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from captioning.data.augment import PLAIN, Augment, View
from captioning.data.preprocess import Preprocess, PreprocessSettings
from captioning.data.shards import Sample
from captioning.errors import ImageError
from captioning.training.batches import decode_sample
from captioning.training.crops import quick_crop

Mode = Literal["crop", "squash"]

#: On whole pixels of 160 × 128, so that both implementations crop the same 80 × 80.
BOX = View((0.25, 0.25, 0.75, 0.875))


def png(rgb: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG")
    return out.getvalue()


def photo(seed: int = 0) -> bytes:
    """Smoothed coarse noise, which has shapes and edges like photos."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return png(np.array(Image.fromarray(coarse).resize((160, 128), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", [24, 100])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["crop", "squash"])
def test_a_crop_is_nearly_pillows(
    mode: Mode, interpolation: Literal["bilinear", "bicubic"], size: int, mirrored: bool
) -> None:
    settings = PreprocessSettings(size=size, mode=mode, interpolation=interpolation)
    view = View(BOX.box, mirrored)
    ours = quick_crop(photo(), settings, view)
    pillows = Preprocess(settings).from_bytes(photo(), view).pixels
    assert ours.shape == (size, size, 3)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    # At the edges of the crop Pillow's filter reads pixels beyond them.
    off = np.abs(ours.astype(int) - pillows.astype(int))
    assert off.mean() < 1
    assert off[size // 10 : -size // 10, size // 10 : -size // 10].max() <= 1
    # Another part of the image, or another image, is not as close.
    assert np.abs(ours.astype(int) - Preprocess(settings).from_bytes(photo(), PLAIN).pixels).mean() > 20


def test_the_centre_is_taken_of_what_is_cropped() -> None:
    settings = PreprocessSettings(size=24, mode="crop")
    rows = np.repeat(np.arange(120, dtype=np.uint8)[:, None, None], 160, 1).repeat(3, 2)
    # The left quarter is 40 × 120: its centred square has the rows 40 to 79.
    found = quick_crop(png(rows), settings, View((0.0, 0.0, 0.25, 1.0)))
    assert found.min() == pytest.approx(40, abs=1)
    assert found.max() == pytest.approx(79, abs=1)


@pytest.mark.parametrize("mode", ["crop", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (333, 7)])
def test_any_image_can_be_cropped(size: tuple[int, int], mode: Mode) -> None:
    augment = Augment(flip=True, crop=0.08, seed=0)
    data = png(np.full((size[1], size[0], 3), 77, np.uint8))
    for number in range(40):
        view = augment.epoch_view(f"photo-{number}", ("a dog",), 0)
        assert (quick_crop(data, PreprocessSettings(size=8, mode=mode), view) == 77).all()


def test_whole_images_are_pillows_to_the_last_number() -> None:
    preprocess = Preprocess(PreprocessSettings(size=50))
    sample = Sample("photo", photo(), ("a dog",), "train")
    for view in (None, PLAIN, View(mirrored=True)):
        assert (decode_sample(sample, preprocess, view) == preprocess.from_bytes(photo(), view).pixels).all()
    assert (decode_sample(sample, preprocess, BOX) == quick_crop(photo(), preprocess.settings, BOX)).all()


def test_an_image_that_is_cut_off_is_refused() -> None:
    with pytest.raises(ImageError) as found:
        quick_crop(photo()[:-200], PreprocessSettings(size=8), BOX)
    assert found.value.error_class == "truncated"
