"""Reads a verb's settings: a YAML file, overridden by single values."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from captioning.config import read_settings
from captioning.errors import UsageError

T = TypeVar("T")


def read_verb_settings(cls: type[T], config: Path | None, overrides: Sequence[str] | None) -> T:
    """Settings of type `cls` from a `--config` file, overridden by `--set`. Raises `UsageError`."""
    text, where = read_config(config)
    return read_settings(cls, text, overrides or (), where=where)


def read_config(config: Path | None) -> tuple[str | None, str]:
    """The text of a `--config` file, if one is given, and how errors refer to it."""
    if config is None:
        return None, "the settings"
    try:
        return config.read_text(encoding="utf-8"), str(config)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {config} cannot be read: {error}. Pass a YAML file of settings.") from error
