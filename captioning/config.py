"""Settings: read from YAML, overridden with `key=value`, checked, and printed.

A component's settings are a frozen dataclass in a module beside it, made with `@settings`. Values are
checked once, here; an error names the full key and, if it is unknown, the valid ones.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform, get_args, get_type_hints

import pydantic
import yaml

from captioning.errors import SettingsError

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that refuses unknown keys and wrong types.

    Ranges are written with `annotated_types` (`Annotated[int, Ge(1)]`); rules across fields in
    `__post_init__`, as a `ValueError`.
    """
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    setattr(cls, "__pydantic_config__", config)  # noqa: B010 - mypy does not know the attribute
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def read_settings(cls: type[T], text: str | None, overrides: Sequence[str] = (), *, where: str = "the settings") -> T:
    """Settings of type `cls` from YAML `text` with `key.path=value` overrides.

    `where` names the source in errors (a file's name). Raises `SettingsError`.
    """
    return build(cls, read_values(text, overrides, where=where), where=where)


def read_values(text: str | None, overrides: Sequence[str] = (), *, where: str = "the settings") -> dict[str, Any]:
    """The nested mapping of YAML `text` with overrides applied, not yet checked."""
    try:
        values = yaml.load(text, Loader=_Loader) if text else {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} is not valid YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{where} must be a mapping of keys to values, not {type(values).__name__}.")
    for override in overrides:
        _apply_override(values, override)
    return values


def build(cls: type[T] | pydantic.TypeAdapter[T], values: Mapping[str, Any], *, where: str = "the settings") -> T:
    """Check `values` against `cls` (or an adapter, for a union) and return the settings. Raises `SettingsError`."""
    adapter = cls if isinstance(cls, pydantic.TypeAdapter) else _adapter(cls)
    try:
        text = json.dumps(values)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {error}. Settings are plain text, numbers, lists and mappings.") from error
    try:
        return adapter.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise SettingsError(_explain(adapter._type, error, where)) from None


def to_dict(value: Any) -> Any:
    """Settings as plain JSON values (nested dicts, lists, numbers, strings)."""
    return json.loads(_adapter(type(value)).dump_json(value))


def deep_merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings key by key; values of `overrides` win, and lists are replaced whole."""
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = deep_merge(below, value)
        merged[key] = value
    return merged


#: Cached, since making one takes milliseconds.
_adapters: dict[type, pydantic.TypeAdapter[Any]] = {}


def _adapter(cls: type[T]) -> pydantic.TypeAdapter[T]:
    if cls not in _adapters:
        _adapters[cls] = pydantic.TypeAdapter(cls)
    return _adapters[cls]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `3e-4` is a number and a duplicate key an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                text = f"a mapping has the key {key!r}, which is not plain text: put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, text, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set {override!r} is not of the form key=value, such as decoding.beam_size=5.")
    try:
        value = yaml.load(text, Loader=_Loader) if text.strip() else ""
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {key}: the value {text!r} is not valid YAML: {error}") from error
    *path, last = key.strip().split(".")
    at = values
    for step in path:
        inner = at.get(step)
        if inner is None:
            inner = at[step] = {}
        if not isinstance(inner, dict):
            raise SettingsError(f"--set {key}: {step!r} is a single value and has no keys below it.")
        at = inner
    at[last] = value


def _explain(cls: Any, error: pydantic.ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        path = [str(step) for step in problem["loc"] if not str(step).startswith("function-")]
        key = ".".join(path) or "(top level)"
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            valid = _valid_keys(cls, path[:-1])
            close = difflib.get_close_matches(path[-1], valid, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            lines.append(f"unknown key {key!r}.{hint} Valid keys here: {', '.join(valid) or 'none'}.")
        elif problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            lines.append(f"{key!r} is required but missing.")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = problem.get("input")
            shown = f", not {given!r}" if not isinstance(given, dict) else ""
            named = f"{key!r}: " if path else ""
            lines.append(f"{named}{message[:1].lower()}{message[1:]}{shown}.")
    return f"In {where}: " + "\n  ".join(dict.fromkeys(lines))


def _valid_keys(cls: Any, path: Sequence[str]) -> list[str]:
    at: Any = cls
    for step in path:
        options = [at, *get_args(at)]
        found = [
            hints[step]
            for option in options
            if dataclasses.is_dataclass(option) and step in (hints := get_type_hints(option))
        ]
        if not found:
            # A union's member name or a list index: stay at this level.
            continue
        at = found[0]
    names: list[str] = []
    for option in [at, *get_args(at)]:
        if dataclasses.is_dataclass(option):
            names += [field.name for field in dataclasses.fields(option)]
    return names
