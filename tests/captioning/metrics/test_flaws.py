"""What counts as repeating, and as broken off."""

import pytest

from captioning.metrics.flaws import breaks_off, repeats_itself


@pytest.mark.parametrize(
    "text",
    [
        "a a dog",
        "a dog is running running",
        "a man in the in the park",
        "a man in red and a man in blue",
        "the dog runs and the dog runs",
    ],
)
def test_repeating(text: str) -> None:
    assert repeats_itself(text.split())


@pytest.mark.parametrize("text", ["", "a", "a dog and a dog", "a man in red and a man with a hat", "a b a c a d"])
def test_not_repeating(text: str) -> None:
    assert not repeats_itself(text.split())


@pytest.mark.parametrize("text", ["", "a", "a man in a", "a man with", "a dog and", "sits on", "on", "one of the"])
def test_broken_off(text: str) -> None:
    assert breaks_off(text.split())


@pytest.mark.parametrize(
    "text", ["a man", "another man looks on", "people looking on", "a car drives by", "a man behind her"]
)
def test_not_broken_off(text: str) -> None:
    assert not breaks_off(text.split())
