"""Checks a verb and its arguments on this machine before anything is sent, and adapts them to the cluster.

    call = check_call(["caption", "s3://bucket/photos", "-o", "s3://bucket/captions", "--config", "mine.yaml"])
    call.arguments    the job's arguments         call.extra    files to send along

The archive is not opened. What a verb takes is read from its command line's declaration and its settings class.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from captioning.errors import UsageError
from cluster.packaging import ROOT, is_packaged
from jobs.__main__ import VERBS, app
from jobs.settings_schema import SAME_SETTINGS, settings_class
from jobs.verb_settings import read_verb_settings

#: The `--help` names of arguments that are paths or URIs.
_PLACES = ("INPUT", "OUTPUT", "RUN", "URI", "DIR", "FILE", "FOLDER")
_REFS = ("REF", "REF…")
_REMOTE = re.compile(r"^(?!file:|local:)[A-Za-z][A-Za-z0-9+.\-]*://")
#: `NAME=` before an INPUT.
_NAMED = re.compile(r"^[^/=]+=(?=.)")
#: The package's folder for files from outside the checkout.
_FOLDER = "_submitted"


@dataclass(frozen=True)
class VerbCall:
    """A job's `arguments`, the verb first; `extra` files by name in the package; `notes` for the user."""

    arguments: tuple[str, ...]
    extra: Mapping[str, Path]
    notes: tuple[str, ...]

    @property
    def verb(self) -> str:
        """The verb's name."""
        return self.arguments[0]


def check_call(arguments: Sequence[str], root: Path = ROOT) -> VerbCall:
    """Check a verb's command line as `python -m jobs` would, its settings and its places.

    Raises `UsageError` for an unknown verb, a wrong setting, or a path that only this machine has, and what the
    command line's parser raises (which exits with code 2) for wrong options.
    """
    if not arguments:
        raise UsageError("Pass a verb after --, such as: submit -- caption s3://bucket/photos -o s3://bucket/captions")
    verb, *rest = arguments
    if verb not in VERBS:
        raise UsageError(f"There is no verb {verb}. The verbs are {', '.join(VERBS)}.")
    group = typer.main.get_command(app)
    command = group.get_command(None, verb)  # type: ignore[attr-defined]
    assert command is not None, "a verb has a command"
    context = command.make_context(f"python -m jobs {verb}", list(rest))
    given = [(option, context.params.get(option.name)) for option in command.params]
    config = _value(given, "--config")
    overrides = list(_value(given, "--set") or ())
    settings = _check_settings(verb, config, overrides)
    paths = list(dict.fromkeys(_check_places(verb, given, settings)))
    extra: dict[str, Path] = {}
    if config is not None:
        rest = _with_config(rest, config, root, extra)
    return VerbCall((verb, *rest), extra, (_shared_storage_note(paths),) if paths else ())


def _value(given: Sequence[tuple[Any, Any]], option: str) -> Any:
    return next((value for declared, value in given if option in declared.opts), None)


def _check_settings(verb: str, config: Path | None, overrides: Sequence[str]) -> Any:
    """The settings as the verb reads them."""
    if verb in ("caption", *SAME_SETTINGS):  # these have additional rules
        from jobs.caption_settings import read_caption_settings

        return read_caption_settings(config, overrides)[0]
    return read_verb_settings(settings_class(verb), config, overrides)


def _check_places(verb: str, given: Sequence[tuple[Any, Any]], settings: Any) -> Iterator[str]:
    """Yield the absolute paths, which nodes might share. Raises `UsageError` for paths that only this machine has."""
    for declared, value in given:
        metavar = declared.metavar or ""
        called = metavar if declared.param_type_name == "argument" else next(iter(declared.opts), metavar)
        for text in [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else ():
            if not isinstance(text, str):
                continue
            if metavar in _PLACES:
                yield from _check_place(called, _without_name(text) if metavar == "INPUT" else text)
            elif metavar in _REFS and _is_path(text):
                yield from _check_place(called, text)
    if verb == "train":
        if settings.data and _value(given, "--data") is None:
            yield from _check_place("the setting data", settings.data)
        if settings.init and _is_path(settings.init):
            yield from _check_place("the setting init", settings.init)
        if settings.text:
            yield from _check_place("the setting text", settings.text)


def _check_place(called: str, text: str) -> Iterator[str]:
    if _REMOTE.match(text):
        return
    if not re.match(r"^(file:|local:)?/", text):
        path = os.path.abspath(os.path.expanduser(text))
        raise UsageError(
            f"{called} {text} is a path on this machine, which the cluster's nodes do not have. Use a URI that all of "
            f"them can reach, such as s3://bucket/…, or, if {path} is on shared storage that every node has mounted "
            "there, that absolute path."
        )
    yield f"{called} {text}"


def _shared_storage_note(paths: Sequence[str]) -> str:
    """A note about all paths that must be on shared storage."""
    named = " and ".join(filter(None, (", ".join(paths[:-1]), paths[-1])))
    kind = "is a path: it" if len(paths) == 1 else "are paths: they"
    return (
        f"Note: {named} {kind} must be on shared storage that every node of the cluster has mounted there. On local "
        "disks, nodes do not see each other's files."
    )


def _without_name(text: str) -> str:
    named = _NAMED.match(text)
    return text[named.end() :] if named and not os.path.exists(text) else text


def _is_path(ref: str) -> bool:
    """Whether a REF is a local folder, rather than a bundled name or a hub repository."""
    if _REMOTE.match(ref):
        return False
    return ref.startswith(("/", "./", "../", "~", "file:", "local:")) or os.path.exists(ref)


def _with_config(rest: Sequence[str], config: Path, root: Path, extra: dict[str, Path]) -> list[str]:
    """Replace the `--config` path by its name on the cluster; a file from outside the checkout goes into `extra`."""
    path = config.expanduser().resolve()
    if path.is_relative_to(root) and is_packaged(path, root):
        name = path.relative_to(root).as_posix()
    else:
        content = hashlib.sha1(path.read_bytes()).hexdigest()[:8]
        name = f"{_FOLDER}/{re.sub(r'[^A-Za-z0-9._-]', '_', path.stem)}-{content}{path.suffix}"
        extra[name] = path
    changed: list[str] = []
    following = False
    for token in rest:
        if following or token.startswith("--config="):
            changed.append(name if following else f"--config={name}")
            following = False
        else:
            changed.append(token)
            following = token == "--config"
    return changed
