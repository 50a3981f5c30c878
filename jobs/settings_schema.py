"""The settings of each verb: their dataclass, keys, types, defaults and meanings.

Read from the dataclasses and from the docstrings under their fields.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from captioning.config import to_dict

#: Verbs that take the settings of another verb.
SAME_SETTINGS = {"plan": "caption", "retry": "caption"}
#: The settings class of every other verb, as `module:class`.
SETTINGS_CLASSES = {
    "caption": "jobs.caption_settings:CaptionSettings",
    "status": "jobs.verify_settings:VerifySettings",
    "verify": "jobs.verify_settings:VerifySettings",
    "report": "jobs.reporting.run:ReportSettings",
    "compare": "jobs.comparing.run:CompareSettings",
    "export": "jobs.export_settings:ExportSettings",
    "serve": "jobs.serving.settings:ServeSettings",
    "prepare": "jobs.preparing.settings:PrepareSettings",
    "train": "captioning.training.settings:TrainSettings",
    "evaluate": "jobs.evaluating.settings:EvaluateSettings",
    "average": "jobs.average:AverageSettings",
    "doctor": "jobs.diagnosis.settings:DoctorSettings",
}


@dataclass(frozen=True)
class Setting:
    """One setting: its full key, type and default in Markdown, and what it means."""

    key: str
    type: str
    default: str
    meaning: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """The settings of one dataclass, with its description `about`; `key` is "" at the top level."""

    key: str
    name: str
    about: str
    settings: tuple[Setting, ...]


def settings_class(verb: str) -> Any:
    """The dataclass of a verb's settings."""
    module, _, name = SETTINGS_CLASSES[SAME_SETTINGS.get(verb, verb)].partition(":")
    return getattr(importlib.import_module(module), name)


def groups(cls: Any, key: str = "", defaults: str | None = None) -> Iterator[Group]:
    """The settings of a dataclass, then those of each dataclass among its fields.

    `defaults` describes defaults that are not the dataclass's own; a field's metadata sets it for what is below.
    """
    hints = get_type_hints(cls, include_extras=False)
    docs = field_docs(cls)
    own, inner = [], []
    for field in dataclasses.fields(cls):
        full = f"{key}.{field.name}" if key else field.name
        kinds = [option for option in _options(hints[field.name]) if dataclasses.is_dataclass(option)]
        if kinds:
            inner += [(full, kind, field.metadata.get("defaults", defaults)) for kind in kinds]
        if not kinds or len(kinds) > 1 or type(None) in _options(hints[field.name]):
            text = type_text(hints[field.name])
            default = defaults or f"`{default_text(field)}`"
            own.append(Setting(full, text, default, docs.get(field.name, ""), choices(hints[field.name])))
    about = " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())
    yield Group(key, cls.__name__, about, tuple(own))
    for full, kind, others in inner:
        yield from groups(kind, full, others)


def keys(verb: str) -> dict[str, Setting]:
    """All settings of a verb, by key."""
    return {setting.key: setting for group in groups(settings_class(verb)) for setting in group.settings}


@cache
def field_docs(cls: Any) -> Mapping[str, str]:
    """The docstring under each field of a dataclass, joined to one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for field, following in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[field.target.id] = " ".join(following.value.value.split())
    return found


def choices(kind: Any) -> tuple[str, ...]:
    """The allowed words of a setting of this type, if it has such."""
    return tuple(word for option in _options(kind) for word in get_args(option) if get_origin(option) is Literal)


def type_text(kind: Any) -> str:
    """A type for people: `number`, `list of whole number`, `auto` or whole number."""
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "any"}
    if kind in plain:
        return plain[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(option) for option in arguments))
    if origin in (list, tuple):
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return "mapping"
    if dataclasses.is_dataclass(kind):
        return "mapping, below"
    metadata = getattr(kind, "__origin__", None)
    return type_text(metadata) if metadata is not None else str(kind)


def default_text(field: "dataclasses.Field[Any]") -> str:
    """A field's default as one line of YAML."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "needed"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = to_dict(value)
        return f"kind {value['kind']}" if "kind" in value else "as below"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else '""'


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself, without annotations."""
    while hasattr(kind, "__metadata__"):
        kind = kind.__origin__
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(each for option in get_args(kind) for each in _options(option))
    return (kind,)
