"""Runs on the cluster, as a job: `python -m cluster.start VERB …`, begun by `start.sh`.

Tells what this node's Python lacks or has in other versions, then becomes `python -m jobs VERB …`.
Imports nothing of this package's requirements before it has looked whether they are there.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

#: Of the extra `runner`, without which no verb runs.
_OF_THE_RUNNER = ("ray", "rich", "typer")


class Needs(NamedTuple):
    """Requirements that are not there, with the version to install; and those that are, in versions not asked for."""

    missing: list[str]
    other: list[str]


def look(root: Path) -> Needs:
    """What this Python lacks of the requirements in `root`/pyproject.toml."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runner = map(Requirement, project["optional-dependencies"]["runner"])
    wanted = [
        *map(Requirement, project["dependencies"]),
        *(requirement for requirement in runner if requirement.name in _OF_THE_RUNNER),
    ]
    pins = {}
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, equals, version_of_it = line.partition("==")
        if equals:
            pins[canonicalize_name(name)] = version_of_it.strip()
    needs = Needs([], [])
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
    needs = look(Path(__file__).resolve().parent.parent)
    if needs.other:
        print(f"Note: this cluster has other versions than this job asks for: {', '.join(needs.other)}.", flush=True)
    if needs.missing:
        options = " ".join(f"--pip {each}" for each in needs.missing)
        print(
            f"Error: the cluster's Python {sys.executable} lacks {len(needs.missing)} of the packages that this job "
            f"needs. Have them in the image of its nodes (see cluster/Dockerfile), or have Ray install them for this "
            f"job, which takes minutes on every node:\n  python -m cluster submit {options} -- {' '.join(arguments)}",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(2)
    from jobs.__main__ import app

    app(args=arguments, prog_name="python -m jobs")


if __name__ == "__main__":
    main(sys.argv[1:])
