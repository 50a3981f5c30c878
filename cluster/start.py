"""The entry point of a job on the cluster: `python -m cluster.start VERB …`, run by `start.sh`.

Reports missing packages and other versions, then runs `python -m jobs VERB …`. Imports none of the
project's requirements before it has checked that they are installed.
"""

import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

#: The packages of the extra `runner` that every verb needs.
_RUNNER_PACKAGES = ("ray", "rich", "typer")


class UnmetRequirements(NamedTuple):
    """Missing requirements, with the version to install, and those installed in a version that does not fit."""

    missing: list[str]
    other: list[str]


def check_requirements(root: Path) -> UnmetRequirements:
    """Compare this Python's packages with the requirements in `root`/pyproject.toml."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runner = map(Requirement, project["optional-dependencies"]["runner"])
    wanted = [
        *map(Requirement, project["dependencies"]),
        *(requirement for requirement in runner if requirement.name in _RUNNER_PACKAGES),
    ]
    pins = {}
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, equals, version_of_it = line.partition("==")
        if equals:
            pins[canonicalize_name(name)] = version_of_it.strip()
    needs = UnmetRequirements([], [])
    for requirement in wanted:
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            pinned = pins.get(canonicalize_name(requirement.name))
            needs.missing.append(f"{requirement.name}=={pinned}" if pinned else str(requirement))
        else:
            if not requirement.specifier.contains(have, prereleases=True):
                needs.other.append(f"{requirement.name} {have} (wanted: {requirement.specifier})")
    return needs


def main(arguments: list[str]) -> None:
    """Run the verb. Ends with exit code 2 where packages are missing."""
    needs = check_requirements(Path(__file__).resolve().parent.parent)
    if needs.other:
        print(
            f"Note: this cluster does not have the versions that this job needs: {', '.join(needs.other)}.", flush=True
        )
    if needs.missing:
        options = " ".join(f"--pip {shlex.quote(each)}" for each in needs.missing)
        print(
            f"Error: the cluster's Python {sys.executable} lacks {len(needs.missing)} of the packages that this job "
            "needs. Install them in the image of its nodes (see cluster/Dockerfile), or have Ray install them for this "
            f"job, which takes minutes on every node:\n  python -m cluster submit {options} -- {shlex.join(arguments)}",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(2)
    from jobs.__main__ import app

    app(args=arguments, prog_name="python -m jobs")


if __name__ == "__main__":
    main(sys.argv[1:])
