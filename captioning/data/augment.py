"""Augmentation: views of a training image, mirrored, cropped, or plain.

A view depends on (seed, key, number) alone, not on the worker or the time. Boxes are relative to the image's width
and height, so no image is opened here.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Words that mirroring makes wrong: left, right and their derivatives (left-hand, rightmost, leftwards, lefty), but not
#: upright or leftover. "The man left" and "right now" match as well, at the mere cost that the image is not mirrored.
_SIDED = re.compile(r"\b(left|right)(s|most|wards?|hand(ed)?|side|y|ies)?\b", re.IGNORECASE)

#: A crop's aspect ratio relative to the image's is between 3:4 and 4:3 (Szegedy et al. 2015).
_MIN_ASPECT_RATIO = 3 / 4


@dataclass(frozen=True)
class View:
    """A crop of an image, optionally mirrored. `box` is (left, top, right, bottom) as fractions of width and height."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    mirrored: bool = False


PLAIN: Final = View()


@dataclass(frozen=True)
class Augment:
    """Draws views. `flip` enables mirroring, `crop` is the smallest share of the area to keep (1: no crops)."""

    flip: bool
    crop: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, not {self.crop}")

    def view(self, key: str, captions: Sequence[str], number: int) -> View:
        """View `number` of a fixed set: 0 is plain, 1 mirrored, all others cropped and mirrored at random.

        For an image that must not be mirrored, because a caption says left or right, view 1 is a crop.
        """
        may_flip = self._may_flip(captions)
        if number == 0:
            return PLAIN
        if number == 1 and may_flip:
            return View(mirrored=True)
        return self._draw(f"view {number}", key, may_flip)

    def epoch_view(self, key: str, captions: Sequence[str], epoch: int) -> View:
        """The view of `epoch` for images that are decoded in every epoch: a crop, mirrored at random."""
        return self._draw(f"epoch {epoch}", key, self._may_flip(captions))

    def distinct(self, views: int) -> int:
        """How many of the first `views` views of an image that may be mirrored are different."""
        return views if self.crop < 1 else min(views, 2 if self.flip else 1)

    def _may_flip(self, captions: Sequence[str]) -> bool:
        return self.flip and not any(map(_SIDED.search, captions))

    def _draw(self, what: str, key: str, may_flip: bool) -> View:
        coin, size, shape, across, down = _numbers(f"{self.seed}/{what}/{key}", 5)
        mirrored = may_flip and coin < 0.5
        if self.crop == 1:
            return View(mirrored=mirrored)
        # Like torchvision's RandomResizedCrop, but draws only crops that fit, without rejection.
        area = self.crop + size * (1 - self.crop)
        longest = -math.log(max(_MIN_ASPECT_RATIO, area))
        ratio = math.exp((2 * shape - 1) * longest)
        width, height = min(math.sqrt(area * ratio), 1.0), min(math.sqrt(area / ratio), 1.0)
        left, top = across * (1 - width), down * (1 - height)
        return View((left, top, min(left + width, 1.0), min(top + height, 1.0)), mirrored)


def choose_view(seed: int, epoch: int, key: str, count: int) -> int:
    """Which of `count` views of an image to use in `epoch`."""
    return int(_numbers(f"{seed}/choice {epoch}/{key}", 1)[0] * count)


def _numbers(text: str, count: int) -> list[float]:
    """`count` uniform numbers in [0, 1), derived from a hash of `text`."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6 * count).digest()
    return [int.from_bytes(digest[at : at + 6], "big") / 2**48 for at in range(0, len(digest), 6)]
