"""The function that every training worker runs, after Ray Train has set up the process group."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from captioning.errors import UsageError


def train_worker(config: dict[str, Any]) -> None:
    """Train as one of the workers.

    `config` has the `settings`, the `output`, whether to use a `gpu`, and the `folder` in which the command was
    given. `probe`, if there is one, is a file that the driver wrote to `output`: a worker that does not see it
    has another folder there. Raises `UsageError` then, and the errors of `TrainingRun`.
    """
    import torch

    from captioning.data.shards import ShardSet
    from captioning.storage import Location
    from captioning.training.loop import TrainingRun
    from captioning.training.output import claim_output, load_run_tokenizer
    from captioning.training.parts import make_parts, make_tokenizer
    from captioning.training.workers import Workers

    # Ray Train starts workers in a folder of its own, but paths in the settings are relative to the command's.
    with suppress(OSError):  # other machines may not have the folder; settings then have URIs or absolute paths
        os.chdir(config["folder"])
    settings, output = config["settings"], config["output"]
    probe = config.get("probe")
    if probe is not None and not probe.exists():
        raise UsageError(
            f"The folder {output} is not the same one on all nodes of the cluster. Training on several nodes saves its "
            "states where all of them can reach them: pass -o a URI (s3://…) or a folder on a shared file system."
        )
    torch.set_num_threads(settings.threads_per_worker)
    device = torch.device("cpu")
    if config["gpu"]:
        from ray.train.torch import get_device

        device = get_device()
        torch.cuda.set_device(device)  # NCCL collectives of Python objects use the current device
    workers = Workers.from_process_group(device)
    shards = ShardSet.open(Location.parse(settings.data, settings.storage))
    tokenizer = None
    notes: list[str] = []
    if workers.rank == 0:
        tokenizer = load_run_tokenizer(output) or make_tokenizer(settings, shards, notes.append)
    tokenizer = workers.broadcast(tokenizer)
    parts = make_parts(settings, tokenizer, shards, notes.append)
    preemption_pending = _preemption_check() if config.get("several_nodes") else None
    run = TrainingRun(settings, parts, shards, output, workers, notes=notes, preemption_pending=preemption_pending)
    # Write nothing until every worker has got this far: a wrong setting must leave OUTPUT empty.
    workers.gather(True)
    if workers.rank == 0:
        claim_output(output, settings, shards, tokenizer)
    run.run()


def _preemption_check() -> Callable[[], bool] | None:
    """A collective call that tells whether a worker's node is about to be preempted; None if Ray is too old."""
    import ray.train

    get_info = getattr(ray.train, "get_preemption_info", None)  # since 2.60
    return None if get_info is None else lambda: get_info() is not None
