"""Checks of the installed packages: required ones, those of extras, and tested versions.

Reads the requirements from the repository's pyproject.toml and constraints.txt, and imports none of the packages.
"""

import re
import shutil
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from jobs.diagnosis.all_checks import Finding

_ROOT = Path(__file__).resolve().parents[2]
#: The extras that the command line needs, and optional ones with what they add.
_NEEDED = ("runner", "s3", "train")
_OPTIONAL = {
    "heic": "HEIC photos",
    "lora": "LoRA training",
    "tensorboard": "files for TensorBoard",
    "meteor": "METEOR in `evaluate`",
}
#: Packages whose versions are shown: those where the tested version matters most.
_SHOWN_VERSIONS = ("torch", "torchvision", "ray", "transformers", "timm")


def packages(root: Path = _ROOT) -> Iterator[Finding]:
    """Whether all required packages are installed, in allowed versions."""
    base, extras = declared(root)
    missing, wrong, other = [], [], []
    tested = pins(root)
    needed = [*base, *(text for extra in _NEEDED for text in extras.get(extra, ()))]
    count = 0
    for text in needed:
        name, at_least = parse(text)
        if name == "captioning":
            continue
        count += 1
        version = installed_version(name)
        if version is None:
            missing.append(name)
        elif _numbers(version) < _numbers(at_least):
            wrong.append(f"{name} {version} is older than {at_least}")
        elif (pinned := tested.get(_canonical(name))) and _numbers(pinned) != _numbers(version):
            other.append(f"{name} {version} (tested: {pinned})")
    again = "`make setup`, or pip install -c constraints.txt -e '.[runner]'"
    if missing or wrong:
        text = "; ".join([*([f"missing: {', '.join(missing)}"] if missing else []), *wrong])
        yield Finding("packages", "fail", text, f"Install the required packages: {again}")
        return
    versions = ", ".join(f"{name} {installed_version(name)}" for name in _SHOWN_VERSIONS)
    if other:
        text = (
            f"{count} required ones installed ({versions}), {len(other)} in untested versions: {', '.join(other[:6])}"
        )
        yield Finding(
            "packages", "warn", text, f"They will probably work. If something fails, install the tested ones: {again}"
        )
    else:
        yield Finding("packages", "ok", f"{count} required ones installed ({versions}), in the tested versions")


def extras(root: Path = _ROOT) -> Iterator[Finding]:
    """Which optional extras are installed."""
    declared_extras = declared(root)[1]
    there: list[tuple[str, str]] = []
    lacking: list[tuple[str, str]] = []
    for extra, what in _OPTIONAL.items():
        names = [parse(text)[0] for text in declared_extras.get(extra, ())]
        complete = bool(names) and all(installed_version(name) is not None for name in names)
        (there if complete else lacking).append((extra, what))
    text = f"installed: {', '.join(extra for extra, _ in there) or 'none'}"
    if not lacking:
        if shutil.which("java") is None:
            text += "; METEOR also needs Java"
        yield Finding("extras", "ok", text)
        return
    missing = ", ".join(f"{extra} ({what})" for extra, what in lacking)
    wanted = ",".join(extra for extra, _ in lacking)
    yield Finding("extras", "ok", f"{text}; not installed: {missing}", f"Optional: pip install -e '.[{wanted}]'")


def declared(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The project's declared requirements: its own, and those of each extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["dependencies"], project["optional-dependencies"]


def pins(root: Path) -> dict[str, str]:
    """The tested versions by canonical name; {} where the file is missing."""
    try:
        lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_canonical(name): version for name, _, version in pairs}


def parse(requirement: str) -> tuple[str, str]:
    """Name and minimum version of a requirement such as `ray[data]>=2.51`, the only form that this project uses."""
    match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?:>=([0-9.]+))?", requirement)
    assert match is not None, requirement
    return match[1], match[2] or "0"


def installed_version(name: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a release, without a local part such as `+cpu`."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = tuple(map(int, found[0].split("."))) if found else ()
    while numbers and numbers[-1] == 0:
        numbers = numbers[:-1]
    return numbers
