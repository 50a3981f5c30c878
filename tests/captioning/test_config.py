"""Settings: strict YAML, overrides, and errors that name the key and the valid ones."""

from typing import Annotated, Literal

import pytest
from annotated_types import Ge

from captioning.config import build, read_settings, settings, to_dict
from captioning.errors import SettingsError


@settings
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ()
    kind: Literal["one", "two"] = "one"


@settings
class Outer:
    inner: Inner = Inner()
    count: Annotated[int, Ge(1)] = 3
    flag: bool = False
    word: str | None = None

    def __post_init__(self) -> None:
        if self.flag and self.word is None:
            raise ValueError("flag needs a word")


def test_yaml_then_overrides() -> None:
    found = read_settings(Outer, "count: 5\ninner: {rate: 3e-4}", ["inner.names=[a, b]", "flag=true", "word=x"])
    assert found == Outer(count=5, inner=Inner(rate=3e-4, names=("a", "b")), flag=True, word="x")
    merged = read_settings(Outer, "inner:\n  <<: {rate: 0.5, kind: two}\n  kind: one")
    assert merged.inner == Inner(rate=0.5)


def test_printed_settings_read_back() -> None:
    one = Outer(count=7, inner=Inner(rate=1e-5, names=("x",)))
    assert build(Outer, to_dict(one)) == one
    assert to_dict(one)["inner"]["names"] == ["x"]


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("counts: 3", [], "unknown key 'counts'. Did you mean 'count'.*Valid keys here: inner, count, flag, word"),
        ("inner: {rat: 3}", [], "unknown key 'inner.rat'.*Valid keys here: rate, names, kind"),
        ("count: many", [], "'count'.*'many'"),
        ("count: '3'", [], "'count'"),
        ("count: 0", [], "'count'.*greater than or equal to 1"),
        ("inner: {kind: three}", [], "'inner.kind'"),
        ("flag: true", [], "flag needs a word"),
        ("count: 1\ncount: 2", [], "appears twice"),
        ("- a list", [], "must be a mapping"),
        ("count: [", [], "not valid YAML"),
        ("count: {{ COUNT }}", [], "not valid YAML.*not plain text"),
        (None, ["word={{x}}"], "not valid YAML.*not plain text"),
        (None, ["inner.rate=.inf"], "'inner.rate'.*finite"),
        ("inner: {rate: .nan}", [], "'inner.rate'.*finite"),
        (None, ["count"], "key=value"),
        (None, ["count=2", "count.x=1"], "no keys below it"),
    ],
)
def test_wrong_settings_are_explained(text: str | None, overrides: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        read_settings(Outer, text, overrides, where="test.yaml")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Outer().count = 4  # type: ignore[misc]
