"""Views of a training image: mirrored, cropped, or plain.

Which view an image gets follows from (seed, key, number) alone, not from the worker that sees it or
when. This module opens no image: a box is told in shares of the width and the height.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Words that a mirror makes wrong: left, right and what is made of them (left-hand, rightmost, leftwards, lefty). Not
#: upright or leftover. "The man left" and "right now" are caught as well: that costs one image its mirroring, no more.
_SIDED = re.compile(r"\b(left|right)(s|most|wards?|hand(ed)?|side|y|ies)?\b", re.IGNORECASE)

#: A crop's shape, relative to the image's: from 3:4 to 4:3 (Szegedy et al. 2015).
_NARROWEST = 3 / 4


@dataclass(frozen=True)
class View:
    """A part of an image: `box` is (left, top, right, bottom) in shares of width and height; then mirrored, or not."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    mirrored: bool = False


PLAIN: Final = View()


@dataclass(frozen=True)
class Augment:
    """Draws views. `flip` allows mirrored ones, `crop` is the smallest share of the area kept (1: no crops)."""

    flip: bool
    crop: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, not {self.crop}")

    def view(self, key: str, captions: Sequence[str], number: int) -> View:
        """View `number` in a set that is kept: 0 plain, 1 mirrored, those after it cropped and mirrored by a coin.

        An image that must not be mirrored, because a caption of it says left or right, has a crop as view 1.
        """
        may_flip = self._may_flip(captions)
        if number == 0:
            return PLAIN
        if number == 1 and may_flip:
            return View(mirrored=True)
        return self._draw(f"view {number}", key, may_flip)

    def epoch_view(self, key: str, captions: Sequence[str], epoch: int) -> View:
        """The view of `epoch` where every epoch opens the images anew: a crop, and a coin for mirroring."""
        return self._draw(f"epoch {epoch}", key, self._may_flip(captions))

    def distinct(self, views: int) -> int:
        """How many of a set of `views` views differ for an image that may be mirrored."""
        return views if self.crop < 1 else min(views, 2 if self.flip else 1)

    def _may_flip(self, captions: Sequence[str]) -> bool:
        return self.flip and not any(map(_SIDED.search, captions))

    def _draw(self, what: str, key: str, may_flip: bool) -> View:
        coin, size, shape, across, down = _numbers(f"{self.seed}/{what}/{key}", 5)
        mirrored = may_flip and coin < 0.5
        if self.crop == 1:
            return View(mirrored=mirrored)
        # As torchvision's RandomResizedCrop, but only shapes that fit are drawn, so none is drawn in vain.
        area = self.crop + size * (1 - self.crop)
        longest = -math.log(max(_NARROWEST, area))
        ratio = math.exp((2 * shape - 1) * longest)
        width, height = min(math.sqrt(area * ratio), 1.0), min(math.sqrt(area / ratio), 1.0)
        left, top = across * (1 - width), down * (1 - height)
        return View((left, top, min(left + width, 1.0), min(top + height, 1.0)), mirrored)


def choose(seed: int, epoch: int, key: str, count: int) -> int:
    """Which of `count` views of an image `epoch` sees."""
    return int(_numbers(f"{seed}/choice {epoch}/{key}", 1)[0] * count)


def _numbers(text: str, count: int) -> list[float]:
    """`count` numbers from [0, 1) that a text decides, anywhere alike."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6 * count).digest()
    return [int.from_bytes(digest[at : at + 6], "big") / 2**48 for at in range(0, len(digest), 6)]
