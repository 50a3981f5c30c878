import io
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from captioning.data import images
from captioning.data.images import IMAGE_EXTENSIONS, MAX_PIXELS, decode_image, to_rgb
from captioning.errors import ImageError


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width: int = 96, height: int = 64) -> Image.Image:
    """A smooth picture: red grows to the right, green downwards, blue is 90."""
    x = np.linspace(20, 230, width)[None, :].repeat(height, 0)
    y = np.linspace(20, 230, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=2).astype(np.uint8))


def noise(width: int = 200, height: int = 150) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def close(found: np.ndarray, expected: Image.Image, within: float) -> bool:
    return bool(np.abs(found.astype(int) - np.asarray(expected).astype(int)).mean() <= within)


def refused(data: bytes, **options: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, **options)
    assert caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("kind", "within"),
    [("JPEG", 3.0), ("PNG", 0.0), ("WEBP", 3.0), ("BMP", 0.0), ("TIFF", 0.0), ("PPM", 0.0), ("GIF", 40.0)],
)
def test_formats_decode_to_rgb(kind, within):
    rgb = decode_image(saved(photo(), kind))
    assert rgb.shape == (64, 96, 3)
    assert rgb.dtype == np.uint8
    assert rgb.flags.writeable
    assert close(rgb, photo(), within)


@pytest.mark.parametrize(("kind", "feature"), [("JPEG2000", "jpg_2000"), ("AVIF", "avif")])
def test_formats_of_optional_libraries(kind, feature):
    if feature not in features.get_supported():
        pytest.skip(f"this Pillow has no {kind}")
    assert close(decode_image(saved(photo(), kind)), photo(), 4.0)


def test_cmyk_jpeg_is_converted():
    assert close(decode_image(saved(photo().convert("CMYK"), "JPEG", quality=95)), photo(), 4.0)


def test_grey_jpeg_has_three_equal_channels():
    rgb = decode_image(saved(photo().convert("L"), "JPEG"))
    assert (rgb[..., 0] == rgb[..., 1]).all()
    assert (rgb[..., 0] == rgb[..., 2]).all()


def test_sixteen_bit_grey_png_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)
    rgb = decode_image(saved(Image.fromarray(values), "PNG"))
    assert np.abs(rgb[..., 1].astype(float) - values / 257).max() <= 0.51


def test_sixteen_bit_rgb_png():
    row = b"\x00" + struct.pack(">HHHHHH", 65535, 0, 32896, 0, 65535, 257)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(row))
        + png_chunk(b"IEND", b"")
    )
    assert decode_image(data).tolist() == [[[255, 0, 128], [0, 255, 1]]]


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_tiff_is_scaled_by_its_range(top):
    values = (np.linspace(0, 1, 64).reshape(8, 8) * top).astype(np.float32)
    rgb = decode_image(saved(Image.fromarray(values), "TIFF"))
    assert np.abs(rgb[..., 0] - values / top * 255).max() <= 0.51


def test_wide_integers_are_stretched():
    values = np.array([[-1000, 0, 1_000_000]], dtype=np.int32)
    assert decode_image(saved(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 0, 255))
    options = {}
    if mode == "P":
        image = Image.new("P", (4, 2), 0)
        image.putpalette([200, 10, 10, 0, 0, 0])
        image.putpixel((1, 1), 1)
        options = {"transparency": 0}
    else:
        image = image.convert(mode)
    rgb = decode_image(saved(image, "PNG", **options))
    assert rgb[0, 0].tolist() == [255, 255, 255]
    assert rgb[1, 1].tolist() == [0, 0, 0]


def test_half_transparent_is_half_white():
    assert decode_image(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG"))[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = photo(32, 48)
    # A camera stores the picture with the inverse of the transformation that the tag asks for.
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if inverse is None else upright.transpose(Image.Transpose(inverse))
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = decode_image(saved(stored, "JPEG", exif=exif, quality=95))
    assert rgb.shape == (48, 32, 3)
    assert close(rgb, upright, 3.0)


def test_damaged_exif_leaves_the_picture_as_stored():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_image(saved(photo(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")).shape == (64, 96, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    rgb = decode_image(data)
    assert rgb.shape == (10, 20, 3)
    assert np.abs(rgb.astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_truncated_images_raise(kind, kept):
    data = saved(noise(), kind)
    error = refused(data[: int(len(data) * kept)])
    assert error.error_class in {"truncated", "decode"}
    if kind in {"JPEG", "PNG", "WEBP"}:
        assert error.error_class == "truncated"
        assert "fetch it again" in error.message


def test_progressive_jpeg_cut_after_its_first_scans_raises():
    data = saved(noise(), "JPEG", progressive=True)
    assert refused(data[: len(data) * 3 // 4]).error_class == "truncated"


def test_jpeg_whose_rest_is_zeros_raises():
    data = saved(noise(), "JPEG")
    half = len(data) // 2
    error = refused(data[:half] + bytes(len(data) - half))
    assert error.error_class == "truncated"


def test_zeros_after_a_whole_jpeg_are_harmless():
    assert decode_image(saved(photo(), "JPEG") + bytes(512)).shape == (64, 96, 3)


def test_the_flag_for_truncated_images_stays_off():
    refused(saved(noise(), "JPEG")[:2000])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_zero_bytes():
    error = refused(b"")
    assert error.error_class == "empty"
    assert "0 bytes" in error.message


@pytest.mark.parametrize(
    ("data", "error_class", "says"),
    [
        (b"just some notes, not a photo\n" * 20, "not_an_image", "text"),
        ("größe ".encode() * 100, "not_an_image", "text"),
        (b"x", "not_an_image", "text"),
        (bytes(4000), "not_an_image", "zero"),
        (bytes(range(7, 256)) * 4, "not_an_image", "no known"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image", "HTML"),
        (b"PK\x03\x04" + bytes(40), "not_an_image", "zip"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported", "SVG"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(100), "decode", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_an_image", "PostScript"),
        (b"\xff\xd8\xff", "truncated", "missing"),
        (b"\x89PNG\r\n\x1a\n", "truncated", "missing"),
    ],
)
def test_what_is_no_image_says_what_it_is(data, error_class, says):
    error = refused(data)
    assert error.error_class == error_class
    assert says in error.message


def test_damaged_header():
    data = bytearray(saved(photo(), "PNG"))
    data[12:16] = b"JUNK"
    assert refused(bytes(data)).error_class == "decode"


def test_bomb_is_refused_from_the_header_without_memory():
    data = png_header(40_000, 40_000)
    whole = data + png_chunk(b"IDAT", zlib.compress(bytes(100_000))) + png_chunk(b"IEND", b"")
    decode_image(saved(photo(), "PNG"))
    for bomb in (data, whole):
        tracemalloc.start()
        error = refused(bomb)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert error.error_class == "too_large"
        assert "40,000 × 40,000" in error.message
        assert "max_pixels" in error.message
        assert peak < 2_000_000


def test_webp_bomb_is_refused_before_its_canvas_is_made(monkeypatch):
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_383).to_bytes(3, "little") * 2
    monkeypatch.setattr(images, "_open", lambda data: pytest.fail("the decoder was opened"))
    assert refused(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk).error_class == "too_large"


@pytest.mark.parametrize("side", [9_500, 40_000])
def test_bombs_of_formats_that_pillow_reads_the_size_of(side):
    header = struct.pack("<IHHIIHHIIIIII", 0, 0, 0, 54, 40, 1, 24, 0, 0, 0, 0, 0, 0)
    data = bytearray(b"BM" + header[0:4] + header[4:8] + struct.pack("<IIiiHH", 54, 40, side, side, 1, 24) + bytes(24))
    error = refused(bytes(data))
    assert error.error_class == "too_large"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_the_bound_can_be_set(kind):
    data = saved(photo(), kind)
    assert decode_image(data, max_pixels=96 * 64).shape == (64, 96, 3)
    error = refused(data, max_pixels=96 * 64 - 1)
    assert error.error_class == "too_large"
    assert "96 × 64" in error.message


def test_random_damage_gives_pixels_or_an_image_error():
    generator = np.random.default_rng(1)
    classes = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
            whole = np.frombuffer(saved(photo(40, 30), kind), dtype=np.uint8)
            for _ in range(60):
                data = whole.copy()
                data[generator.integers(0, len(data), 4)] = generator.integers(0, 256, 4)
                try:
                    rgb = decode_image(data.tobytes(), max_pixels=1_000_000)
                except ImageError as error:
                    classes.add(error.error_class)
                else:
                    assert rgb.shape[2] == 3
    assert classes <= {"decode", "truncated", "too_large", "unsupported", "not_an_image"}


def test_to_rgb_converts_pil_images_of_any_mode():
    assert to_rgb(photo()).tolist() == np.asarray(photo()).tolist()
    assert to_rgb(Image.new("1", (3, 2), 1)).tolist() == np.full((2, 3, 3), 255).tolist()
    assert to_rgb(Image.new("HSV", (3, 2))).shape == (2, 3, 3)
    assert to_rgb(Image.new("La", (3, 2))).tolist() == np.full((2, 3, 3), 255).tolist()


def test_extensions_are_lower_case():
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"} <= IMAGE_EXTENSIONS
    assert {".avif", ".heic", ".heif", ".jp2"} <= IMAGE_EXTENSIONS
    assert all(extension == extension.lower() and extension.startswith(".") for extension in IMAGE_EXTENSIONS)
    assert MAX_PIXELS > 12_000 * 6_000
