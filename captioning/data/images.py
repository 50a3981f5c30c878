"""Decodes an image file's bytes to RGB pixels, or raises `ImageError` with the reason.

A damaged image is refused, never filled in: a caption of half a photo is worse than none. The error classes are

    empty         no bytes
    not_an_image  text, an HTML page, or any other data without the signature of an image format
    unsupported   a known format or colour mode that cannot be read
    truncated     the end of the image is missing
    too_large     more pixels than allowed, according to the header; nothing is decoded
    memory        decoding needs more memory than is available
    decode        damaged in another way
"""

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from captioning.data.heic import FORMAT, INSTALL, has_heic
from captioning.data.image_headers import has_zero_tail, header_size, is_cut_short, signature
from captioning.errors import ImageError

#: Default limit on an image's pixels, where Pillow begins to warn: 268 MB of RGB.
MAX_PIXELS = 89_478_485
#: The highest limit that can be set; above it Pillow refuses images itself.
MOST_PIXELS = 2 * MAX_PIXELS

#: File name extensions, in lower case, of images in folders.
IMAGE_EXTENSIONS: frozenset[str] = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".jif",
        ".pjpeg",
        ".pjp",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
    }
    | {".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".avif", ".avifs", ".heic", ".heif", ".hif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)

#: The formats to open. Others that Pillow knows run external programs (EPS) or have no signature.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
_READABLE = frozenset({"JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "JPEG 2000", "AVIF", "HEIC"})

_ORIENTATION_TAG = 0x0112
#: By EXIF orientation: the operation that makes the image upright.
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Whether each of these swaps width and height, and then whether it mirrors left and right, top and bottom.
_AXIS_CHANGES = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}

#: Left, top, right and bottom in pixels.
Box = tuple[float, float, float, float]


class DecodedImage(NamedTuple):
    """An image that may have been decoded at a reduced scale."""

    image: Image.Image
    #: The part of `image` that the photo covers. At a reduced scale it may cover the last row and column only partly.
    box: Box
    #: (width, height) at full scale.
    size: tuple[int, int]


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image file's bytes to RGB pixels (H, W, 3) uint8.

    Applies the EXIF orientation, puts transparency on white, converts CMYK, scales 16 bits to 8, and takes the
    first frame of an animation. `max_pixels` limits width × height, which is read from the header. Raises
    `ImageError` with one of this module's error classes.
    """
    return np.array(open_rgb(data, max_pixels=max_pixels))


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) uint8 of a PIL image, with the conversions of `decode_image`.

    Raises `ImageError` if its data is damaged or its mode cannot be converted.
    """
    return np.array(as_rgb_image(image))


def open_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `decode_image`, but returns a loaded PIL image of mode RGB, which saves a copy."""
    return open_scaled(data, max_pixels=max_pixels).image


def open_scaled(data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> DecodedImage:
    """As `open_rgb`, but may decode at a reduced scale.

    With `min_side` a JPEG is decoded at the smallest scale (1/2, 1/4 or 1/8) that leaves both sides at least that
    many pixels, in a fraction of the time. Other formats have no such scales.
    """
    if not data:
        raise ImageError("empty", "The file is empty (0 bytes). Its download or copy probably failed: fetch it again.")
    size = header_size(data)
    if size is not None:
        _check_size(size, max_pixels)
    image = _open(data)
    with image:
        _check_size(image.size, max_pixels)
        size = image.size
        draft = image.draft(None, (min_side, min_side)) if min_side is not None else None
        width, height = draft[1][2:] if draft else size
        rgb = _as_rgb(image, data)
        changes = _AXIS_CHANGES.get(_orientation(image))
        if changes is None:
            return DecodedImage(rgb, (0, 0, width, height), size)
        swapped, mirrored, upside_down = changes
        if swapped:
            width, height, size = height, width, (size[1], size[0])
        left, top = rgb.width - width if mirrored else 0, rgb.height - height if upside_down else 0
        return DecodedImage(rgb, (left, top, left + width, top + height), size)


def as_rgb_image(image: Image.Image) -> Image.Image:
    """As `to_rgb`, but returns a PIL image of mode RGB."""
    return _as_rgb(image, b"")


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header. No pixel memory is allocated."""
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    if signature(data) == "HEIC" and has_heic():
        formats.append(FORMAT)
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\d+", str(error))
        count = f"{int(found[0]):,} pixels" if found else "Its size"
        raise ImageError("too_large", f"{count} exceeds what can be decoded safely. Scale the image down.") from None
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except Exception as error:
        raise _damaged(error, data) from error


def _as_rgb(image: Image.Image, data: bytes) -> Image.Image:
    try:
        image.load()
        if data and has_zero_tail(data):
            raise ImageError("truncated", f"{_cut_text(data)} The rest of the file is zeros.")
        rgb = _convert(image)
        transpose = _TRANSPOSES.get(_orientation(image))
        return rgb if transpose is None else rgb.transpose(transpose)
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(error, data) from error


def _convert(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as RGB."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float32) / 257.0)
    if mode in ("I", "F"):
        maxima = (65535.0,) if mode == "I" else (1.0, 255.0, 65535.0)
        return _grey(_scaled(np.asarray(image).astype(np.float64), maxima))
    if image.has_transparency_data:
        if mode == "La":
            image = image.convert("LA")
        opaque = image if mode == "RGBA" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, (255, 255, 255, 255)), opaque).convert("RGB")
    if mode == "RGB":
        return image
    try:
        return image.convert("RGB")
    except ValueError as error:
        text = f"Colour mode {mode} cannot be converted to RGB. Convert the image to JPEG or PNG first."
        raise ImageError("unsupported", text) from error


def _scaled(values: NDArray[np.float64], maxima: Sequence[float]) -> NDArray[np.float64]:
    """Grey values scaled to 0..255, from 0..m for the first m of `maxima` that suffices, else from their own range."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    for maximum in maxima:
        if low >= 0 and high <= maximum:
            return values * (255.0 / maximum)
    return (values - low) * (255.0 / ((high - low) or 1.0))


def _grey(values: NDArray[np.floating]) -> Image.Image:
    eight_bit = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return Image.fromarray(eight_bit).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image; 1 (upright) if its EXIF data is damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            "too_large",
            f"{width:,} × {height:,} pixels ({width * height:,}) exceeds the limit of {max_pixels:,} (max_pixels). "
            "Scale the image down, or raise the limit if you trust the archive.",
        )


def _unidentified(data: bytes) -> ImageError:
    name = signature(data)
    if name == "HEIC" and not has_heic():
        return ImageError("unsupported", f"Reading HEIC images needs the extra heic: {INSTALL}")
    if name in _READABLE:
        if is_cut_short(data):
            return ImageError("truncated", _cut_text(data))
        return ImageError("decode", f"The file begins like a {name} image, but its header is damaged.")
    if name == "HTML":
        return ImageError("not_an_image", "The file is an HTML page: the download probably returned an error page.")
    if name in ("zip", "gzip", "PDF", "PostScript", "video"):
        return ImageError("not_an_image", f"The file is not an image but a {name} file.")
    if name is not None:
        return ImageError("unsupported", f"{name} images cannot be read. Convert the image to JPEG, PNG or WebP first.")
    if not data.strip(b"\x00"):
        return ImageError(
            "not_an_image", f"All {len(data):,} bytes of the file are zero: it was never written. Fetch it again."
        )
    kind = "text, not an image" if _is_text(data[:512]) else "data in no known image format"
    return ImageError("not_an_image", f"The file contains {kind}: it begins with {data[:16]!r}.")


def _damaged(error: Exception, data: bytes) -> ImageError:
    reason = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError("too_large", f"The image exceeds what can be decoded safely: {reason}.")
    if isinstance(error, MemoryError) or "out of memory" in reason.lower():
        return ImageError("memory", "There is not enough memory to decode the image.")
    if isinstance(error, EOFError) or "truncated" in reason.lower() or (data and is_cut_short(data)):
        return ImageError("truncated", f"{_cut_text(data)} The decoder says: {reason}.")
    if isinstance(error, NotImplementedError):
        return ImageError("unsupported", f"The image uses a feature of its format that cannot be read: {reason}.")
    return ImageError("decode", f"The image is damaged. The decoder says: {reason}.")


def _cut_text(data: bytes) -> str:
    held = f" (the file has {len(data):,} bytes)" if data else ""
    return f"The end of the image is missing{held}. Its download or copy was probably cut off: fetch it again."


def _is_text(head: bytes) -> bool:
    try:
        text = head[:-3].decode() if len(head) > 3 else head.decode()
    except UnicodeDecodeError as error:
        # The last character may be cut off; an error before that means binary data.
        if error.start < len(head) - 8:
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)
