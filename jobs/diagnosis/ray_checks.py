"""Checks of Ray, in a process of their own: `python -m jobs.diagnosis.ray_checks`.

Without RAY_ADDRESS, starts a Ray here and runs a task on it. With it, joins that cluster and asks each of
its nodes for its versions and whether it finds the packages that a job needs.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from jobs.diagnosis.all_checks import Finding
from jobs.diagnosis.check_process import start_reporting

#: Most nodes that are asked, and the time limit for their answers, in seconds.
_ASKED = 16
_ANSWER_SECONDS = 60.0
#: Packages that every node should have in this machine's version.
_SAME = ("torch", "captioning", "pyarrow", "transformers")


def main() -> int:
    """Run the checks."""
    _, report = start_reporting()
    began = time.monotonic()
    try:
        import ray
    except Exception as error:
        text = f"Ray cannot be imported: {type(error).__name__}: {error}"
        report(Finding("ray", "fail", text, "Install it: pip install -c constraints.txt -e '.[runner]'"))
        return 0
    address = os.environ.get("RAY_ADDRESS")
    from captioning.errors import UnfinishedError
    from jobs.ray_session import join_cluster, start_local

    if address and address.startswith(("http://", "https://")):
        text = f"RAY_ADDRESS={address} is the address of a dashboard, which accepts only job submissions"
        todo = "Use it with `python -m cluster submit --address`; set RAY_ADDRESS to HOST:6379, or to auto on a node."
        report(Finding("ray", "fail", text, todo))
        return 0
    try:
        if address:
            join_cluster(address)
        else:
            start_local(num_cpus=1)
        doubled = ray.get(ray.remote(num_cpus=0.5)(lambda number: 2 * number).remote(21), timeout=_ANSWER_SECONDS)
        assert doubled == 42
    except UnfinishedError as error:
        report(Finding("ray", "fail", str(error)))
        return 0
    except Exception as error:
        todo = (
            "Check with `ray status` on the cluster whether a CPU is free."
            if address
            else "The machine may be too busy: try again."
        )
        report(
            Finding("ray", "fail", f"Ray {ray.__version__} cannot run a task: {type(error).__name__}: {error}", todo)
        )
        return 0
    seconds = time.monotonic() - began
    if not address:
        report(Finding("ray", "ok", f"{ray.__version__} starts here and runs a task ({seconds:.1f} s in total)"))
    else:
        have = ray.cluster_resources()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        there = f"{len(nodes)} nodes, {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
        text = f"{ray.__version__} joins {address}: {there}"
        report(Finding("ray", "ok", f"{text} ({seconds:.1f} s)"))
        for finding in _nodes(nodes):
            report(finding)
    ray.shutdown()
    return 0


def _nodes(nodes: list[dict[str, Any]]) -> list[Finding]:
    """The nodes' versions and packages, compared with this machine's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = _look()
    here = look(_SAME)
    asked = {}
    for node in nodes[:_ASKED]:
        if not node["Resources"].get("CPU"):
            continue  # a head node without CPUs for work
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0.1, max_retries=0)(look)
        asked[task.options(scheduling_strategy=place).remote(_SAME)] = node["NodeManagerAddress"]
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    silent = [asked[reference] for reference in late]
    lacking, other = [], []
    for reference in ready:
        try:
            there = ray.get(reference)
        except Exception as error:
            silent.append(f"{asked[reference]} ({type(error).__name__})")
            continue
        lacking += [f"{asked[reference]}: {name}" for name in ("jobs", "captioning") if not there["finds"][name]]
        for name, version in here["versions"].items():
            if there["versions"][name] not in (version, None) or (there["versions"][name] is None and name == "torch"):
                other.append(f"{asked[reference]}: {name} {there['versions'][name]} (here {version})")
    found = []
    if silent:
        todo = "Check with `ray status` whether these nodes are busy or gone."
        found.append(Finding("nodes", "warn", f"no answer from {', '.join(silent)}", todo))
    if lacking:
        text = f"packages of this repository are not found on {', '.join(lacking)}"
        todo = "Submit the job with `python -m cluster submit`, which uploads them, or use the container image."
        found.append(Finding("nodes", "fail", text, todo))
    if other:
        todo = "Install the same versions everywhere: pip install -c constraints.txt -e '.[runner]', or use one image."
        found.append(Finding("nodes", "warn", f"different versions on {'; '.join(other)}", todo))
    return found or [Finding("nodes", "ok", f"{len(ready)} checked: same versions as here, packages found")]


def _look() -> Callable[[tuple[str, ...]], dict[str, Any]]:
    """The function that a node runs. As a closure it is pickled by value, since a node may lack this module."""

    def look(names: tuple[str, ...]) -> dict[str, Any]:
        from importlib import metadata, util

        versions: dict[str, str | None] = {}
        for name in names:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = None
        return {"versions": versions, "finds": {n: util.find_spec(n) is not None for n in ("jobs", "captioning")}}

    return look


if __name__ == "__main__":
    sys.exit(main())
