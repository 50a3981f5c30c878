"""The photos to caption: a copy of some of yours, or variations of those that come with packages.

The same folder, or none, always gives the same photos.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from captioning.errors import InputError
from jobs.demo import copy_photos

#: Suffixes that all compared programs can read.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png"})
#: Longer sides in pixels, as on the web, or of camera photos after a first reduction.
_SIDES = (500, 500, 640, 800, 1024, 1600)
#: Width to height.
_SHAPES = (4 / 3, 3 / 4, 3 / 2, 2 / 3, 1.0)


def collect_photos(source: Path | None, folder: Path, count: int, *, sides: Sequence[int] = _SIDES) -> int:
    """Fill `folder` with `count` photos from `source`, or with synthetic ones; returns their number.

    The longer side of synthetic ones is one of `sides`, in pixels. A source with fewer gives all it has.
    Raises `InputError` where there are none.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if source is None:
        return _make_photos(folder, count, sides)
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not found:
        raise InputError(f"There are no photos ({', '.join(sorted(EXTENSIONS))}) in {source}: give another --photos.")
    # Spread over the folder, since neighbours are often similar.
    chosen = [found[place * len(found) // count] for place in range(count)] if len(found) > count else found
    for number, path in enumerate(chosen):
        shutil.copyfile(path, folder / f"{number:06d}{path.suffix.lower()}")
    return len(chosen)


def _make_photos(folder: Path, count: int, sides: Sequence[int]) -> int:
    sources = folder.with_name(folder.name + "-sources")
    copy_photos(sources)
    originals = [Image.open(path).convert("RGB") for path in sorted(sources.iterdir())]
    for number in range(count):
        photo = _variation(originals[number % len(originals)], number, sides)
        photo.save(folder / f"{number:06d}.jpg", quality=88)
    shutil.rmtree(sources)
    return count


def _variation(original: Image.Image, number: int, sides: Sequence[int]) -> Image.Image:
    """A variation of `original`: a part of it, in another size and light, maybe mirrored."""
    chance = np.random.default_rng(number)
    shape = _SHAPES[chance.integers(len(_SHAPES))]
    width = min(original.width, original.height * shape) * chance.uniform(0.6, 1.0)
    height = width / shape
    left, top = chance.uniform(0, original.width - width), chance.uniform(0, original.height - height)
    scale = sides[int(chance.integers(len(sides)))] / max(width, height)
    size = (round(width * scale), round(height * scale))
    photo = original.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    if chance.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(photo).enhance(chance.uniform(0.7, 1.2))
