"""Captions of the bundled captioners, alone, in batches of any size, in any order, and by any back end: the same.

Of 24 made photos; with CAPTIONING_PHOTOS, a folder, of all that are in it (minutes).
"""

import os
from pathlib import Path

import numpy as np
import pytest

from captioning import load_captioner
from captioning.backends.names import Precision
from captioning.refs import bundled_names
from tests.benchmarks.photos import collect_photos

MADE = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    given = os.environ.get("CAPTIONING_PHOTOS")
    folder = tmp_path_factory.mktemp("photos") / "made"
    if given is None:
        collect_photos(None, folder, MADE, sides=(320,))
    return sorted((Path(given) if given else folder).iterdir())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", bundled_names())
def test_a_caption_does_not_depend_on_its_batch(name: str, precision: Precision, photos: list[Path]) -> None:
    captioner = load_captioner(name, device="cpu", precision=precision)
    pixels = np.stack([captioner.preprocess.from_bytes(path.read_bytes()).pixels for path in photos])
    texts = [caption.text for caption in captioner.caption_pixels(pixels, batch_size=32)]
    assert len(set(texts)) > len(texts) / 4
    for size in (1, 7, 64):
        assert [caption.text for caption in captioner.caption_pixels(pixels, batch_size=size)] == texts
    order = np.random.default_rng(0).permutation(len(pixels))
    shuffled = captioner.caption_pixels(pixels[order], batch_size=32)
    assert [caption.text for caption in shuffled] == [texts[at] for at in order]


@pytest.mark.parametrize("name", bundled_names())
def test_a_caption_does_not_depend_on_the_back_end(name: str, photos: list[Path]) -> None:
    found = [load_captioner(name, device="cpu", encoder=encoder) for encoder in ("eager", "auto")]
    texts = [[caption.text for caption in captioner.caption(photos)] for captioner in found]
    assert texts[0] == texts[1]
