"""What `doctor` sees of the installed packages: those that are needed, those of extras, the tested versions.

Reads what is stated in pyproject.toml and constraints.txt beside the packages of this repository, and
imports nothing of what it looks at.
"""

import re
import shutil
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from jobs.diagnosis.all_checks import Finding

_ROOT = Path(__file__).resolve().parents[2]
#: The extras that the command line needs, and those that add something: what.
_NEEDED = ("runner", "s3", "train")
_ADDING = {
    "heic": "HEIC photos",
    "lora": "LoRA training",
    "tensorboard": "files for TensorBoard",
    "meteor": "METEOR in `evaluate`",
}
#: Versions of packages of which the tested one matters most.
_TOLD = ("torch", "torchvision", "ray", "transformers", "timm")


def packages(root: Path = _ROOT) -> Iterator[Finding]:
    """Whether all that is needed is installed, in versions that are allowed."""
    base, extras = stated(root)
    missing, wrong, other = [], [], []
    tested = pins(root)
    needed = [*base, *(text for extra in _NEEDED for text in extras.get(extra, ()))]
    count = 0
    for text in needed:
        name, at_least = parse(text)
        if name == "captioning":
            continue
        count += 1
        version = version_of(name)
        if version is None:
            missing.append(name)
        elif _numbers(version) < _numbers(at_least):
            wrong.append(f"{name} {version} is older than {at_least}")
        elif (pinned := tested.get(_canonical(name))) and _numbers(pinned) != _numbers(version):
            other.append(f"{name} {version} (tested: {pinned})")
    again = "`make setup`, or pip install -c constraints.txt -e '.[runner]'"
    if missing or wrong:
        text = "; ".join([*([f"missing: {', '.join(missing)}"] if missing else []), *wrong])
        yield Finding("packages", "fail", text, f"Install what is needed: {again}")
        return
    versions = ", ".join(f"{name} {version_of(name)}" for name in _TOLD)
    if other:
        text = f"{count} needed ones are there ({versions}), {len(other)} not as tested: {', '.join(other[:6])}"
        yield Finding(
            "packages", "warn", text, f"They may well work. If something does not, take the tested ones: {again}"
        )
    else:
        yield Finding("packages", "ok", f"{count} needed ones are there ({versions}), versions as tested")


def extras(root: Path = _ROOT) -> Iterator[Finding]:
    """Which extras are there; none of them is needed."""
    stated_extras = stated(root)[1]
    there: list[tuple[str, str]] = []
    lacking: list[tuple[str, str]] = []
    for extra, what in _ADDING.items():
        names = [parse(text)[0] for text in stated_extras.get(extra, ())]
        complete = bool(names) and all(version_of(name) is not None for name in names)
        (there if complete else lacking).append((extra, what))
    text = f"installed: {', '.join(extra for extra, _ in there) or 'none'}"
    if not lacking:
        if shutil.which("java") is None:
            text += "; without Java, METEOR is left out"
        yield Finding("extras", "ok", text)
        return
    missing = ", ".join(f"{extra} ({what})" for extra, what in lacking)
    wanted = ",".join(extra for extra, _ in lacking)
    yield Finding(
        "extras", "ok", f"{text}; not installed: {missing}", f"Only if you want them: pip install -e '.[{wanted}]'"
    )


def stated(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The requirements that the project states: its own, and those of each extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["dependencies"], project["optional-dependencies"]


def pins(root: Path) -> dict[str, str]:
    """The tested versions, by canonical names; {} where the file is not there."""
    try:
        lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_canonical(name): version for name, _, version in pairs}


def parse(requirement: str) -> tuple[str, str]:
    """Name and least version of a requirement such as `ray[data]>=2.51`; that is all that this project's state."""
    match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?:>=([0-9.]+))?", requirement)
    assert match is not None, requirement
    return match[1], match[2] or "0"


def version_of(name: str) -> str | None:
    """The installed version of a package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a release; a local part such as `+cpu` says how it was built."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = tuple(map(int, found[0].split("."))) if found else ()
    while numbers and numbers[-1] == 0:
        numbers = numbers[:-1]
    return numbers
