"""HEIC images: read if the extra is installed, otherwise refused with advice."""

import io
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from captioning.data import heic
from captioning.data.images import decode_image
from captioning.errors import ImageError


@pytest.fixture(autouse=True)
def known_anew() -> Iterator[None]:
    heic.has_heic.cache_clear()
    yield
    heic.has_heic.cache_clear()


def photo(**options: object) -> tuple[Image.Image, bytes]:
    assert heic.has_heic()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8))
    image = image.resize((64, 48), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "HEIF", **options)
    return image, file.getvalue()


def refused(data: bytes, **options: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, **options)
    return caught.value


def test_a_photo_is_read() -> None:
    image, data = photo(quality=95)
    pixels = decode_image(data)
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - np.asarray(image).astype(int)).mean() < 8


def test_it_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, data = photo(quality=95, exif=exif.tobytes())
    pixels = decode_image(data)
    assert pixels.shape == (64, 48, 3)
    turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    assert np.abs(pixels.astype(int) - turned.astype(int)).mean() < 8


def test_damage_has_its_class() -> None:
    _, data = photo()
    assert refused(data[: len(data) - 40]).error_class == "truncated"
    assert refused(data[: len(data) // 2]).error_class == "truncated"
    assert refused(data[:30]).error_class in ("truncated", "decode")
    assert refused(data, max_pixels=1000).error_class == "too_large"
    draw = np.random.default_rng(1)
    for _ in range(100):
        bad = bytearray(data)
        for place in draw.integers(0, len(bad), 6):
            bad[place] = draw.integers(256)
        try:
            decode_image(bytes(bad))
        except ImageError as error:
            assert error.error_class  # noqa: PT017 - either is right


def test_without_the_extra_the_row_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = photo()
    heic.has_heic.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = refused(data)
    assert error.error_class == "unsupported"
    assert "captioning[heic]" in error.message
