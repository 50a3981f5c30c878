"""What every worker of a training runs, its process group already joined by Ray Train."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from captioning.errors import UsageError


def train_worker(config: dict[str, Any]) -> None:
    """Train as one of the workers: `config` has the `settings`, the `output`, and whether a `gpu` is to be used.

    `folder` is the one in which the command was given.

    `mark`, if there is one, is a file of the driver's in `output`: who does not see it would train into a folder of
    its own. Raises `UsageError` then, and whatever stops a training.
    """
    import torch

    from captioning.data.shards import ShardSet
    from captioning.storage import Location
    from captioning.training.loop import TrainingRun
    from captioning.training.output import claim, kept_tokenizer
    from captioning.training.parts import make_parts, make_tokenizer
    from captioning.training.workers import Workers

    # Ray Train gives each worker a folder of its own. Paths in settings are relative to where the command was given.
    with suppress(OSError):  # another machine may not have it, and is given URIs or whole paths then
        os.chdir(config["folder"])
    settings, output = config["settings"], config["output"]
    mark = config.get("mark")
    if mark is not None and not mark.exists():
        raise UsageError(
            f"The folder {output} is another one on some nodes of the cluster. A training on several nodes keeps its "
            "states where all reach them: give -o a URI (s3://…) or a folder of a file system that they share."
        )
    torch.set_num_threads(settings.threads_per_worker)
    device = torch.device("cpu")
    if config["gpu"]:
        from ray.train.torch import get_device

        device = get_device()
        torch.cuda.set_device(device)  # what gathers objects over NCCL goes by the current device
    workers = Workers.of_process_group(device)
    shards = ShardSet.open(Location.parse(settings.data, settings.storage))
    tokenizer = None
    notes: list[str] = []
    if workers.rank == 0:
        tokenizer = kept_tokenizer(output) or make_tokenizer(settings, shards, notes.append)
    tokenizer = workers.broadcast(tokenizer)
    parts = make_parts(settings, tokenizer, shards, notes.append)
    leaving = _node_is_leaving() if config.get("several_nodes") else None
    run = TrainingRun(settings, parts, shards, output, workers, notes=notes, leaving=leaving)
    # Only when every worker could make its part is anything written: a wrong setting leaves OUTPUT free.
    workers.gather(True)
    if workers.rank == 0:
        claim(output, settings, shards, tokenizer)
    run.run()


def _node_is_leaving() -> Callable[[], bool] | None:
    """Asks, all workers at once, whether a node of one of them is about to be taken away; None for a Ray without."""
    import ray.train

    ask = getattr(ray.train, "get_preemption_info", None)  # since 2.60
    return None if ask is None else lambda: ask() is not None
