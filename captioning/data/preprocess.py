"""Preprocessing: from an image to a model's square input, cropped or squashed and resized, uint8.

The settings are saved with the checkpoint. Captioning, evaluation and training share this module; only the random
crops of uncached training images are made by `training.crops`. Mean and standard deviation are only stored here:
the model normalises the pixels itself, on its device.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray
from PIL import Image

from captioning.config import settings
from captioning.data.augment import PLAIN, View
from captioning.data.images import MAX_PIXELS, MOST_PIXELS, Box, open_scaled

#: Scaled decoding leaves at least this many times `size` for the resize filter; below that, pixels change visibly.
_MIN_SCALE = 2
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@settings
class PreprocessSettings:
    """How an image becomes a model's input."""

    size: Annotated[int, Ge(1)] = 224
    """The side of the model's square input in pixels."""

    mode: Literal["crop", "squash"] = "crop"
    """`crop`: the largest centred square; `squash`: the whole image, its aspect ratio lost."""

    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """The resize filter, with antialiasing."""

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """The mean of R, G and B that the model subtracts, in units of 0..255. Default: ImageNet's."""

    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """The standard deviation that the model divides by, in units of 0..255. Default: ImageNet's."""

    backend: Literal["pillow"] = "pillow"
    """The library that decodes and resizes. Pixels differ slightly between libraries."""

    scaled_decoding: bool = True
    """Decode JPEGs of at least four times `size` at the smallest scale (1/2, 1/4 or 1/8) that leaves twice `size`, in a
    third to a fifth of the time; pixels differ by half a level on average."""

    max_pixels: Annotated[int, Ge(1), Le(MOST_PIXELS)] = MAX_PIXELS
    """Images with more pixels than this, according to their header, are refused (class `too_large`)."""

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")


@dataclass(frozen=True)
class Pixels:
    """One preprocessed image: `pixels` (S, S, 3) uint8 RGB, and its size as decoded, after EXIF rotation."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


class Preprocess:
    """Turns images into model input according to `PreprocessSettings`. Picklable and thread-safe."""

    def __init__(self, settings: PreprocessSettings) -> None:
        self.settings = settings

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels (S, S, 3) uint8 of an image (H, W, 3) uint8 RGB."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise ValueError(f"An image must be (H, W, 3) uint8 RGB, not {rgb.shape} {rgb.dtype}.")
        if 0 in rgb.shape:
            raise ValueError(f"An image must have pixels; this one is {rgb.shape[1]} × {rgb.shape[0]}.")
        image = Image.fromarray(rgb)
        return self._square(image, (0, 0, *image.size), PLAIN)

    def from_bytes(self, data: bytes, view: View | None = None) -> Pixels:
        """Decode and preprocess an image file's bytes, or a `view` of the image. Raises `ImageError`.

        The returned width and height are those of the whole image.
        """
        view = view or PLAIN
        # Crops are enlarged, and need full resolution.
        scaled = self.settings.scaled_decoding and view.box == PLAIN.box
        min_side = _MIN_SCALE * self.settings.size if scaled else None
        decoded = open_scaled(data, max_pixels=self.settings.max_pixels, min_side=min_side)
        width, height = decoded.size
        return Pixels(pixels=self._square(decoded.image, decoded.box, view), width=width, height=height)

    def _square(self, image: Image.Image, content: Box, view: View) -> NDArray[np.uint8]:
        width, height = content[2] - content[0], content[3] - content[1]
        left, right = content[0] + view.box[0] * width, content[0] + view.box[2] * width
        top, bottom = content[1] + view.box[1] * height, content[1] + view.box[3] * height
        if self.settings.mode == "crop":
            side = min(right - left, bottom - top)
            left += (right - left - side) / 2
            top += (bottom - top - side) / 2
            right, bottom = left + side, top + side
        size = (self.settings.size, self.settings.size)
        # Rounding errors must not push the box over the edge, which Pillow rejects.
        box = (left, top, min(right, float(image.width)), min(bottom, float(image.height)))
        pixels = np.array(image.resize(size, _FILTERS[self.settings.interpolation], box=box))
        return np.ascontiguousarray(pixels[:, ::-1]) if view.mirrored else pixels
