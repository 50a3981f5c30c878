"""Augmentation: which images are mirrored, how much a crop keeps, and that views depend on the key alone."""

import io

import numpy as np
import pytest
from PIL import Image

from captioning.data.augment import PLAIN, Augment, View, choose_view
from captioning.data.preprocess import Preprocess, PreprocessSettings

KEYS = [f"photo-{number}" for number in range(400)]
CAPTIONS = ("a dog runs over the grass", "a brown dog outside")


def photo(width: int = 120, height: int = 90) -> np.ndarray:
    """Smooth, and different everywhere: red grows to the right, green downwards."""
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    red, green = np.meshgrid(x, y)
    return np.stack([red, green, np.full_like(red, 60)], -1).astype(np.uint8)


def png(rgb: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    "caption",
    [
        "a man on the left",
        "RIGHT: a dog",
        "his left-hand glove",
        "the rightmost of three",
        "a lefty pitcher",
        "two men face leftwards",
        "the man's left's raised",
        "she left the house",
    ],
)
def test_no_view_is_mirrored_where_a_caption_says_left_or_right(caption: str) -> None:
    augment = Augment(flip=True, crop=0.5, seed=1)
    captions = ("a photo", caption)
    for key in KEYS[:50]:
        assert not any(augment.view(key, captions, number).mirrored for number in range(6))
        assert not any(augment.epoch_view(key, captions, epoch).mirrored for epoch in range(6))


@pytest.mark.parametrize("caption", ["a bright day", "standing upright", "leftover food", "a playwright", "rightly so"])
def test_words_that_only_look_like_sides_do_not_matter(caption: str) -> None:
    assert Augment(flip=True, crop=1.0, seed=1).view("photo", (caption,), 1).mirrored


def test_a_set_of_views_is_plain_mirrored_then_cropped() -> None:
    augment = Augment(flip=True, crop=0.5, seed=3)
    drawn = []
    for key in KEYS:
        plain, mirrored, *others = (augment.view(key, CAPTIONS, number) for number in range(5))
        assert plain == PLAIN == View((0.0, 0.0, 1.0, 1.0), mirrored=False)
        assert mirrored == View(mirrored=True)
        assert len({other.box for other in (plain, *others)}) == 4
        drawn += others
    share = sum(view.mirrored for view in drawn) / len(drawn)
    assert 0.45 < share < 0.55


def test_an_image_that_must_not_be_mirrored_is_cropped_instead() -> None:
    view = Augment(flip=True, crop=0.5, seed=3).view("photo", ("on the left",), 1)
    assert not view.mirrored
    assert view.box != PLAIN.box
    assert Augment(flip=False, crop=1.0, seed=3).view("photo", CAPTIONS, 1) == PLAIN


def test_epochs_mirror_every_other_image_each_time_anew() -> None:
    augment = Augment(flip=True, crop=1.0, seed=0)
    coins = np.array([[augment.epoch_view(key, CAPTIONS, epoch).mirrored for key in KEYS] for epoch in range(6)])
    assert (abs(coins.mean(1) - 0.5) < 0.1).all()
    agreement = (coins[:, None] == coins[None]).mean(2)[~np.eye(6, dtype=bool)]
    assert (abs(agreement - 0.5) < 0.12).all()
    assert not any(Augment(flip=False, crop=1.0, seed=0).epoch_view(key, CAPTIONS, 1).mirrored for key in KEYS)


@pytest.mark.parametrize("crop", [0.08, 0.5, 0.9, 1.0])
def test_crops_keep_what_they_must_and_lie_within_the_image(crop: float) -> None:
    augment = Augment(flip=False, crop=crop, seed=5)
    boxes = np.array([augment.epoch_view(key, CAPTIONS, 2).box for key in KEYS])
    left, top, right, bottom = boxes.T
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    area, ratio = (right - left) * (bottom - top), (right - left) / (bottom - top)
    assert (area >= crop - 1e-9).all()
    assert (ratio >= 3 / 4 - 1e-9).all()
    assert (ratio <= 4 / 3 + 1e-9).all()
    if crop == 1:
        assert (boxes == [0, 0, 1, 1]).all()
    else:
        # Crops cover the allowed range of sizes, positions and aspect ratios.
        assert area.min() < crop + 0.1 * (1 - crop)
        assert area.max() > 1 - 0.1 * (1 - crop)
        assert left.std() > 0.01
        assert top.std() > 0.01
        assert ratio.std() > 0.01


def test_views_follow_from_seed_key_and_number_alone() -> None:
    def views(seed: int, keys: list[str]) -> dict[str, list[View]]:
        augment = Augment(flip=True, crop=0.5, seed=seed)
        return {key: [augment.view(key, CAPTIONS, 2), augment.epoch_view(key, CAPTIONS, 2)] for key in keys}

    once = views(7, KEYS[:20])
    assert once == views(7, KEYS[19::-1])
    assert all(once[key] != views(8, [key])[key] for key in once)
    assert len({tuple(each) for each in once.values()}) == 20
    assert all(kept != drawn for kept, drawn in once.values())


def test_every_view_is_chosen_alike_and_epochs_differ() -> None:
    chosen = np.array([[choose_view(1, epoch, key, 3) for key in KEYS] for epoch in range(4)])
    assert (np.bincount(chosen.ravel(), minlength=3) > 0.28 * chosen.size).all()
    assert set(chosen.ravel().tolist()) == {0, 1, 2}
    assert (chosen[0] != chosen[1]).mean() > 0.5
    assert choose_view(1, 0, "photo", 1) == 0


@pytest.mark.parametrize(
    ("flip", "crop", "distinct"), [(False, 1.0, 1), (True, 1.0, 2), (True, 0.9, 4), (False, 0.9, 4)]
)
def test_no_more_views_are_kept_than_can_differ(flip: bool, crop: float, distinct: int) -> None:
    assert Augment(flip, crop, 0).distinct(4) == distinct
    assert Augment(flip, crop, 0).distinct(1) == 1


@pytest.mark.parametrize("crop", [0.0, -1.0, 1.5])
def test_crops_of_nothing_are_refused(crop: float) -> None:
    with pytest.raises(ValueError, match="crop"):
        Augment(True, crop, 0)


@pytest.mark.parametrize("mode", ["crop", "squash"])
def test_the_plain_view_is_the_image_as_it_was(mode: str) -> None:
    preprocess = Preprocess(PreprocessSettings(size=24, mode=mode))
    rgb = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    side = 61
    box = ((97 - side) / 2, 0.0, (97 - side) / 2 + side, 61.0) if mode == "crop" else (0.0, 0.0, 97.0, 61.0)
    as_ever = np.array(image.resize((24, 24), Image.Resampling.BICUBIC, box=box))
    assert (preprocess.from_bytes(png(rgb)).pixels == as_ever).all()
    assert (preprocess.from_bytes(png(rgb), PLAIN).pixels == as_ever).all()


@pytest.mark.parametrize("mode", ["crop", "squash"])
def test_a_mirrored_view_is_the_mirror_image(mode: str) -> None:
    preprocess = Preprocess(PreprocessSettings(size=24, mode=mode))
    plain = preprocess.from_bytes(png(photo())).pixels
    mirrored = preprocess.from_bytes(png(photo()), View(mirrored=True)).pixels
    assert (mirrored == plain[:, ::-1]).all()
    assert not (mirrored == plain).all()
    assert mirrored.flags.c_contiguous


def test_a_crop_shows_its_part_of_the_image() -> None:
    preprocess = Preprocess(PreprocessSettings(size=24, mode="squash"))
    view = View((0.5, 0.25, 1.0, 0.75))
    found = preprocess.from_bytes(png(photo()), view)
    assert (found.width, found.height) == (120, 90)
    red, green = found.pixels[..., 0].astype(float), found.pixels[..., 1].astype(float)
    assert red.min() == pytest.approx(128, abs=8)
    assert red.max() == pytest.approx(255, abs=8)
    assert green.min() == pytest.approx(64, abs=8)
    assert green.max() == pytest.approx(191, abs=8)


def test_a_crop_comes_before_the_centre_is_taken() -> None:
    preprocess = Preprocess(PreprocessSettings(size=24, mode="crop"))
    # The left half of 120 × 90 is 60 × 90: its centred square spans 60 of the 90 rows.
    pixels = preprocess.from_bytes(png(photo()), View((0.0, 0.0, 0.5, 1.0))).pixels.astype(float)
    assert pixels[..., 0].max() == pytest.approx(127, abs=8)
    assert pixels[..., 1].min() == pytest.approx(255 / 6, abs=8)
    assert pixels[..., 1].max() == pytest.approx(255 * 5 / 6, abs=8)


@pytest.mark.parametrize("mode", ["crop", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (333, 7)])
def test_any_image_can_be_cropped(size: tuple[int, int], mode: str) -> None:
    preprocess = Preprocess(PreprocessSettings(size=8, mode=mode))
    augment = Augment(flip=True, crop=0.08, seed=0)
    data = png(np.full((size[1], size[0], 3), 77, np.uint8))
    for key in KEYS[:40]:
        assert (preprocess.from_bytes(data, augment.epoch_view(key, CAPTIONS, 0)).pixels == 77).all()
