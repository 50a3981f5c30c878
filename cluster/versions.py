"""Compares a cluster's versions with this machine's and with pyproject.toml's requirements, without importing Ray."""

import platform
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from captioning.errors import UsageError
from cluster.packaging import ROOT


def check_versions(ray: str, python: str | None, root: Path = ROOT) -> list[str]:
    """Notes about a cluster's versions. Raises `UsageError` for versions on which this package cannot run."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {"Python": SpecifierSet(project["requires-python"])}
    for requirement in map(Requirement, project["optional-dependencies"]["runner"]):
        if requirement.name == "ray":
            needed["Ray"] = requirement.specifier
    cluster = {"Ray": ray, "Python": python}
    for name, have in cluster.items():
        if have is not None and not needed[name].contains(have, prereleases=True):
            raise UsageError(
                f"The cluster runs {name} {have}, and this package needs {name} {needed[name]}. Start the cluster "
                "with a newer one (cluster/Dockerfile makes an image that fits)."
            )
    here = {"Ray": _own_ray(), "Python": platform.python_version()}
    differing = [
        name
        for name in cluster
        if cluster[name] is not None and here[name] is not None and _relevant(cluster[name]) != _relevant(here[name])
    ]
    if not differing:
        return []
    there = " and ".join(f"{name} {cluster[name]}" for name in differing)
    ours = " and ".join(f"{name} {here[name]}" for name in differing)
    return [f"Note: the cluster runs {there}, this machine {ours}. The job runs with the cluster's."]


def _own_ray() -> str | None:
    try:
        return version("ray")
    except PackageNotFoundError:
        return None


def _relevant(text: str | None) -> tuple[str, ...]:
    """A version without its patch level."""
    return tuple((text or "").split(".")[:2])
