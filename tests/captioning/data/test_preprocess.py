import io
import pickle

import numpy as np
import pytest
from PIL import Image

from captioning.config import build, read_settings, to_dict
from captioning.data.augment import View
from captioning.data.images import decode_image
from captioning.data.preprocess import Preprocess, PreprocessSettings
from captioning.errors import ImageError, SettingsError


def stripes(width: int, height: int) -> np.ndarray:
    """Left quarter red, middle green, right quarter blue."""
    rgb = np.zeros((height, width, 3), dtype=np.uint8)
    rgb[:, : width // 4, 0] = 255
    rgb[:, width // 4 : -(width // 4), 1] = 255
    rgb[:, -(width // 4) :, 2] = 255
    return rgb


def jpeg(rgb: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=95, **options)
    return out.getvalue()


def test_crop_keeps_the_centre():
    pixels = Preprocess(PreprocessSettings(size=32, mode="crop"))(stripes(200, 100))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[:, 2:-2, 1] == 255).all()
    assert (pixels[:, 2:-2, [0, 2]] == 0).all()


def test_squash_keeps_everything():
    pixels = Preprocess(PreprocessSettings(size=32, mode="squash"))(stripes(200, 100))
    assert pixels[16, 3].tolist() == [255, 0, 0]
    assert pixels[16, 16].tolist() == [0, 255, 0]
    assert pixels[16, 28].tolist() == [0, 0, 255]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_shrinking_does_not_alias(interpolation):
    checks = np.indices((512, 512)).sum(0) % 2 * 255
    rgb = np.repeat(checks[..., None], 3, 2).astype(np.uint8)
    pixels = Preprocess(PreprocessSettings(size=64, interpolation=interpolation))(rgb)
    assert np.abs(pixels[4:-4, 4:-4].astype(int) - 127).max() <= 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 2), (224, 224)])
def test_any_size_gives_the_square(shape):
    rgb = np.full((*shape, 3), 77, dtype=np.uint8)
    for mode in ("crop", "squash"):
        pixels = Preprocess(PreprocessSettings(mode=mode))(rgb)
        assert pixels.shape == (224, 224, 3)
        assert (pixels == 77).all()


def test_bytes_and_array_take_the_same_path():
    data = jpeg(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8))
    preprocess = Preprocess(PreprocessSettings(size=48))
    found = preprocess.from_bytes(data)
    assert (found.pixels == preprocess(decode_image(data))).all()
    assert (found.width, found.height) == (140, 90)
    assert found.pixels.flags.writeable


def test_size_is_that_after_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = Preprocess(PreprocessSettings(size=16)).from_bytes(jpeg(stripes(80, 40), exif=exif))
    assert (found.width, found.height) == (40, 80)


def test_bad_bytes_raise_an_image_error():
    preprocess = Preprocess(PreprocessSettings(max_pixels=100))
    with pytest.raises(ImageError) as caught:
        preprocess.from_bytes(jpeg(stripes(80, 40)))
    assert caught.value.error_class == "too_large"


@pytest.mark.parametrize(
    "rgb", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_wrong_arrays_are_refused(rgb):
    with pytest.raises(ValueError, match="An image must"):
        Preprocess(PreprocessSettings())(rgb)


def test_settings_survive_a_checkpoint_and_the_preprocess_a_process_border():
    settings = PreprocessSettings(size=288, mode="squash", mean=(1.0, 2.0, 3.0))
    assert build(PreprocessSettings, to_dict(settings)) == settings
    again = pickle.loads(pickle.dumps(Preprocess(settings)))
    assert again.settings == settings


@pytest.mark.parametrize(
    "text", ["size: 0", "mode: stretch", "std: [0.0, 1.0, 1.0]", "mean: [1.0]", "max_pixels: 1000000000"]
)
def test_wrong_settings_are_refused(text):
    with pytest.raises(SettingsError, match=text.split(":")[0]):
        read_settings(PreprocessSettings, text)


def scene(width: int, height: int) -> np.ndarray:
    """A picture with edges, gradients and fine grain, like photos."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(1)
    waves = [127 + 90 * np.sin(x / (17 + 9 * c)) * np.cos(y / (23 - 5 * c)) for c in range(3)]
    rgb = np.stack(waves, -1) + rng.normal(0, 12, (height, width, 1))
    rgb[height // 3 : height // 2, width // 4 : width // 2] = (200, 40, 40)
    return rgb.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("mode", ["crop", "squash"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_decoded_at_a_scale_is_nearly_the_same(mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Not multiples of four: at scale 1/4 the photo covers the last row and column only partly.
    data = jpeg(scene(1601, 1201), exif=exif)
    whole = Preprocess(PreprocessSettings(mode=mode, scaled_decoding=False)).from_bytes(data)
    scaled = Preprocess(PreprocessSettings(mode=mode)).from_bytes(data)
    assert (scaled.width, scaled.height) == (whole.width, whole.height) == ((1601, 1201), (1201, 1601))[orientation > 4]
    difference = np.abs(scaled.pixels.astype(int) - whole.pixels)
    assert 0 < difference.mean() < 0.6
    assert np.percentile(difference, 99) <= 8


@pytest.mark.parametrize(("side", "scaled"), [(895, False), (896, True)])
def test_scaled_decoding_leaves_twice_what_is_asked_for(monkeypatch, side, scaled):
    decoded = []
    square = Preprocess._square
    monkeypatch.setattr(
        Preprocess,
        "_square",
        lambda self, image, shown, view: decoded.append(image) or square(self, image, shown, view),
    )
    Preprocess(PreprocessSettings(size=224)).from_bytes(jpeg(scene(1000, side)))
    assert decoded[0].size == ((500, 448) if scaled else (1000, side))


def test_small_photos_and_crops_are_decoded_whole():
    small, large = jpeg(scene(640, 480)), jpeg(scene(1600, 1200))
    plain, scaled = PreprocessSettings(scaled_decoding=False), PreprocessSettings()
    assert (Preprocess(plain).from_bytes(small).pixels == Preprocess(scaled).from_bytes(small).pixels).all()
    view = View(box=(0.1, 0.1, 0.4, 0.4))
    assert (Preprocess(plain).from_bytes(large, view).pixels == Preprocess(scaled).from_bytes(large, view).pixels).all()


def test_a_large_jpeg_cut_short_is_refused_at_any_scale():
    data = jpeg(scene(1600, 1200))
    with pytest.raises(ImageError) as caught:
        Preprocess(PreprocessSettings()).from_bytes(data[: len(data) * 2 // 3])
    assert caught.value.error_class == "truncated"
