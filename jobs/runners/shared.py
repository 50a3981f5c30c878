"""Whether all nodes of a cluster see a file of this machine: a run that writes to a local folder cannot do without.

Knows Ray's nodes and a path; nothing of what is kept there.
"""

from pathlib import Path
from typing import Any

from captioning.errors import UsageError

#: Seconds that nodes are given to answer; one that does not is taken for one that will.
_PATIENCE = 60.0
_NAMED = 3


def require_shared(file: Path) -> None:
    """See that every node which works has `file`, which is there on this one. Raises `UsageError`, naming some."""
    without = _nodes_without(file)
    if without:
        more = f" and {len(without) - _NAMED} more nodes" if len(without) > _NAMED else ""
        raise UsageError(
            f"{file} is not there on {', '.join(without[:_NAMED])}{more}: what captioners write there would be lost. "
            "Give an OUTPUT that all nodes reach: a URI (s3://…), or a folder of a file system that they share."
        )


def _nodes_without(file: Path) -> list[str]:
    """Addresses of the nodes with CPUs, beside this one, on which `file` is not there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    asked: dict[Any, str] = {}
    task = ray.remote(num_cpus=0, max_retries=0)(_is_there)
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=place).remote(str(file))] = node["NodeManagerAddress"]
    if not asked:
        return []
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE)
    without = []
    for answer in answered:
        try:
            there = ray.get(answer)
        except ray.exceptions.RayError:
            continue  # a node that is lost is no reason not to begin
        if not there:
            without.append(asked[answer])
    return sorted(without)


def _is_there(file: str) -> bool:
    return Path(file).exists()
