"""Names in an export: never outside of its folder, unique, and equal to the id where possible."""

import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.run.export.names import STATE_FOLDER, Names, find_names, safe_path, split_extension

ODD = [
    "/",
    ".",
    "..",
    "%",
    "%2F",
    "%2E",
    "~",
    "\n",
    "\x00",
    "a",
    "b",
    ".jpg",
    ".png",
    "é",
    "🐕",
    "\\",
    "\\xff",
    "__",
    " ",
]
ids = st.lists(st.sampled_from(ODD), min_size=1, max_size=6).map("".join)


@pytest.mark.parametrize(
    ("image_id", "path"),
    [
        ("photos/cat.jpg", "photos/cat.jpg"),
        ("100%.jpg", "100%.jpg"),
        ("a b#c?d[e].jpg", "a b#c?d[e].jpg"),
        ("../../etc/passwd", "%2E%2E/%2E%2E/etc/passwd"),
        ("/etc/passwd", "%2F/etc/passwd"),
        ("https://host/cat.jpg", "https:/%2F/host/cat.jpg"),
        ("a\nb.jpg", "a%0Ab.jpg"),
        ("a%0Ab.jpg", "a%250Ab.jpg"),
        ("\\xff.jpg", "%5Cxff.jpg"),
        (f"{STATE_FOLDER}/done", "%2Ecaptioning-export/done"),
    ],
)
def test_an_id_is_kept_where_it_can_be(image_id: str, path: str) -> None:
    assert safe_path(image_id) == path


@given(ids)
@settings(deadline=None)
def test_no_path_leaves_the_folder(image_id: str) -> None:
    path = safe_path(image_id)
    assert not path.startswith("/")
    assert not set(path.split("/")) & {"", ".", ".."}
    assert os.path.normpath(os.path.join("/root", path)) == f"/root/{path}"
    assert "\n" not in path
    assert "\0" not in path


@given(st.sets(ids, min_size=2, max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_two_images_share_a_name(found: set[str]) -> None:
    images = sorted(found)
    names = find_names([images[:3], images[3:]])
    keys = [names.key(image_id) for image_id in images]
    assert len(set(keys)) == len(keys)
    files = [names.image(image_id, "x.jpg") for image_id in images]
    assert len(set(files)) == len(files)


def test_only_colliding_names_keep_their_extension() -> None:
    names = find_names([["a/cat.jpg", "a/dog.jpg"], ["a/cat.png", "b/cat.jpg"]])
    assert names.key("a/dog.jpg") == "a/dog"
    assert names.key("b/cat.jpg") == "b/cat"
    assert (names.key("a/cat.jpg"), names.key("a/cat.png")) == ("a/cat.jpg", "a/cat.png")


def test_an_id_without_extension_takes_that_of_its_file() -> None:
    names = Names.none()
    assert names.image("000001", "/data/photos.tar#000001.PNG") == "000001.png"
    assert names.image("000001", "/data/000001") == "000001.jpg"
    assert names.image("cat.JPEG", "/data/cat.JPEG") == "cat.JPEG"


def test_long_names_are_cut_and_stay_apart() -> None:
    long = "é" * 200
    one, other = safe_path(f"{long}1"), safe_path(f"{long}2")
    assert one != other
    assert len(f"{one}.txt".encode()) <= 255


def test_hidden_names_can_be_shown() -> None:
    assert safe_path(".hidden/__x/cat.jpg", visible=True) == "%2Ehidden/%5F_x/cat.jpg"
    assert safe_path(".hidden/cat.jpg") == ".hidden/cat.jpg"


@settings(deadline=None)
@given(st.text(string.ascii_letters + "./", max_size=12))
def test_an_extension_is_only_that_of_an_image(name: str) -> None:
    stem, extension = split_extension(name)
    assert stem + extension == name
    assert extension == "" or stem.rpartition("/")[2]
