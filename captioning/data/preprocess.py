"""From an image to the square of pixels that a model sees: resized, cropped or squashed, uint8.

The settings are saved with the checkpoint. All that is captioned or evaluated comes through here, and what training
does not crop anew in every epoch (`training.crops`).
Mean and deviation are only kept here: the model normalises the pixels itself, on its device.
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

#: What scaled decoding leaves for the filter to shrink. With less of it, what the two do to a picture would show.
_SCALED_SIDES = 2
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@settings
class PreprocessSettings:
    """How an image becomes a model's input."""

    size: Annotated[int, Ge(1)] = 224
    """Pixels a side of the square that the model sees."""

    mode: Literal["crop", "squash"] = "crop"
    """`crop`: the largest centred square; `squash`: the whole image, its aspect ratio lost."""

    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """The filter for resizing; widened when the image shrinks, so that nothing aliases."""

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Taken from R, G and B by the model, in units of 0..255. Default: ImageNet's."""

    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """R, G and B are divided by this in the model, in units of 0..255. Default: ImageNet's."""

    backend: Literal["pillow"] = "pillow"
    """What decodes and resizes. Another back end gives slightly other pixels."""

    scaled_decoding: bool = True
    """JPEGs of four times `size` a side and more are decoded at the smallest of their scales (a half, a quarter, an
    eighth) that leaves twice `size`, in a third to a fifth of the time; pixels differ by half a level on average."""

    max_pixels: Annotated[int, Ge(1), Le(MOST_PIXELS)] = MAX_PIXELS
    """Images of more pixels than this are refused from their header (class `too_large`)."""

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
    """Images to model input, by `PreprocessSettings`. Picklable, and safe to share between threads."""

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
        """Decode and preprocess an image file's bytes, or what a `view` shows of it. Raises `ImageError`.

        The size told is that of the whole image.
        """
        view = view or PLAIN
        # A crop needs the pixels that it enlarges.
        scaled = self.settings.scaled_decoding and view.box == PLAIN.box
        least = _SCALED_SIDES * self.settings.size if scaled else None
        opened = open_scaled(data, max_pixels=self.settings.max_pixels, least=least)
        width, height = opened.size
        return Pixels(pixels=self._square(opened.image, opened.shown, view), width=width, height=height)

    def _square(self, image: Image.Image, shown: Box, view: View) -> NDArray[np.uint8]:
        width, height = shown[2] - shown[0], shown[3] - shown[1]
        left, right = shown[0] + view.box[0] * width, shown[0] + view.box[2] * width
        top, bottom = shown[1] + view.box[1] * height, shown[1] + view.box[3] * height
        if self.settings.mode == "crop":
            side = min(right - left, bottom - top)
            left += (right - left - side) / 2
            top += (bottom - top - side) / 2
            right, bottom = left + side, top + side
        size = (self.settings.size, self.settings.size)
        # Rounding must not carry the box over the edge, which Pillow refuses.
        box = (left, top, min(right, float(image.width)), min(bottom, float(image.height)))
        pixels = np.array(image.resize(size, _FILTERS[self.settings.interpolation], box=box))
        return np.ascontiguousarray(pixels[:, ::-1]) if view.mirrored else pixels
