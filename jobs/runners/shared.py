"""Checks that all nodes of a cluster see a file of this machine, which a run in a local OUTPUT depends on."""

from pathlib import Path
from typing import Any

from captioning.errors import UsageError

#: Seconds for the nodes to answer; one that does not is assumed to see the file.
_TIMEOUT = 60.0
_MAX_NAMED = 3


def require_shared(file: Path) -> None:
    """Raise `UsageError`, naming some nodes, unless every node with CPUs sees `file`, which exists on this one."""
    without = _nodes_missing(file)
    if without:
        more = f" and {len(without) - _MAX_NAMED} more nodes" if len(without) > _MAX_NAMED else ""
        raise UsageError(
            f"{file} does not exist on {', '.join(without[:_MAX_NAMED])}{more}: what captioners write there would be "
            "lost. Choose an OUTPUT that all nodes can reach: a URI (s3://…) or a folder on a shared file system."
        )


def _nodes_missing(file: Path) -> list[str]:
    """Addresses of the other nodes with CPUs that do not see `file`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    asked: dict[Any, str] = {}
    task = ray.remote(num_cpus=0, max_retries=0)(_exists)
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=place).remote(str(file))] = node["NodeManagerAddress"]
    if not asked:
        return []
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_TIMEOUT)
    without = []
    for answer in answered:
        try:
            there = ray.get(answer)
        except ray.exceptions.RayError:
            continue  # a lost node does not prevent the start
        if not there:
            without.append(asked[answer])
    return sorted(without)


def _exists(file: str) -> bool:
    return Path(file).exists()
