"""configs/README.md matches the dataclasses."""

from jobs.settings_page import FILE, page
from jobs.settings_schema import SETTINGS_CLASSES, keys


def test_the_page_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == page(), "Run `make configs` and commit configs/README.md."


def test_every_setting_has_a_meaning() -> None:
    for verb in SETTINGS_CLASSES:
        for setting in keys(verb).values():
            assert setting.meaning, f"{verb}: the field {setting.key} has no docstring under it"


def test_keys_types_defaults_and_choices() -> None:
    found = keys("caption")
    assert found["decoding.beam_size"].default == "the checkpoint's"
    assert found["decoding.beam_size"].type == "whole number"
    assert found["runtime.runner"].choices == ("auto", "ray", "local")
    assert keys("train")["optim.lr"].default == "`0.002`"
    assert "model.encoder.name" in keys("train")
