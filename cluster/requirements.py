"""Prints the packages that cluster nodes need, one per line: `python cluster/requirements.py EXTRA…`.

Reads pyproject.toml, and follows extras that name other extras. The project itself is left out, since a
job brings its own code. Uses only the standard library, since it runs before anything is installed.
"""

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(extras: Sequence[str], project: Path = _PROJECT) -> list[str]:
    """The project's requirements and those of `extras`, sorted. Raises `ValueError` for an unknown extra."""
    stated = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    own, optional = str(stated["name"]), stated["optional-dependencies"]
    found = set(stated["dependencies"])
    pending, seen = list(extras), set[str]()
    while pending:
        extra = pending.pop()
        if extra in seen:
            continue
        seen.add(extra)
        if extra not in optional:
            raise ValueError(f"{extra!r} is not an extra of {project}. Extras: {', '.join(sorted(optional))}.")
        for requirement in optional[extra]:
            inner = re.fullmatch(rf"{re.escape(own)}\[(.+)\]", requirement)
            if inner:
                pending += [name.strip() for name in inner[1].split(",")]
            else:
                found.add(requirement)
    return sorted(found)


if __name__ == "__main__":
    try:
        print("\n".join(requirements(sys.argv[1:])))
    except ValueError as error:
        sys.exit(f"Error: {error}")
