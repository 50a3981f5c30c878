"""Starts the training workers with Ray Train, and restarts them when nodes are lost. `worker` is what they run.

States are saved to OUTPUT by the run itself, so Ray Train stores nothing and needs no shared storage.
"""

import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioning.errors import UnfinishedError
from captioning.training.state import saved_step
from jobs.runners.observe import node_loads
from jobs.runners.pipeline import cluster_nodes
from jobs.training.capacity import CapacityWatch, has_pending_workers
from jobs.training.placement import place_workers
from jobs.training.worker import train_worker
from jobs.user_errors import find_user_error

if TYPE_CHECKING:
    from captioning.storage import Location
    from captioning.training.settings import TrainSettings


def fit(settings: "TrainSettings", output: "Location") -> None:
    """Train to the end on the Ray cluster that this process is connected to.

    Raises the `CaptioningError` of a worker, `SettingsError` if the workers do not fit on the cluster,
    `UnfinishedError` if workers are lost repeatedly or can no longer be placed, and `KeyboardInterrupt` with
    a message.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from jobs.training.network import MultiNodeTorchConfig
    from jobs.training.restart_policy import RestartPolicy, last_line

    nodes = cluster_nodes()
    placement = place_workers(settings, nodes)
    several = len(nodes) > 1
    elastic = placement.min_workers < placement.max_workers
    with tempfile.TemporaryDirectory(prefix="captioning-train-") as folder, _probe(output, several=several) as probe:
        messages = Path(folder) / "messages"
        messages.touch()
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "settings": settings,
                "output": output,
                "folder": str(Path.cwd()),
                "gpu": placement.gpu,
                "several_nodes": several,
                "probe": probe,
            },
            torch_config=MultiNodeTorchConfig() if several else None,
            scaling_config=ScalingConfig(
                num_workers=(placement.min_workers, placement.max_workers) if elastic else placement.max_workers,
                use_gpu=placement.gpu,
                resources_per_worker={"CPU": placement.cpus, **({"GPU": 1} if placement.gpu else {})},
                placement_strategy=placement.strategy,
            ),
            run_config=RunConfig(
                name="run",
                storage_path=folder,
                # On several nodes `RestartPolicy` decides when to give up.
                failure_config=FailureConfig(max_failures=-1 if several else 0),
                callbacks=[RestartPolicy(output, messages)] if several else [],
            ),
        )
        capacity = CapacityWatch(
            placement, node_loads, partial(has_pending_workers, placement), partial(print, flush=True)
        )
        try:
            _run_in_thread(trainer.fit, _MessagePrinter(messages).poll, capacity.poll)
        except KeyboardInterrupt:
            saved = saved_step(output)
            if saved is None:
                raise KeyboardInterrupt("Nothing is saved yet: the same command starts from the beginning.") from None
            raise KeyboardInterrupt(
                f"Training is saved up to step {saved:,}. Run the same command again to resume."
            ) from None
        except Exception as error:
            raise _user_error(error) or UnfinishedError(
                f"Training stopped: {last_line(error)} Run the same command again to resume from the last saved state."
            ) from error


@contextmanager
def _probe(output: "Location", *, several: bool) -> Iterator["Location | None"]:
    """A file in a local OUTPUT by which workers on other nodes check that they have the same folder."""
    if not (several and output.is_local):
        yield None
        return
    # Named like a temporary file, so that `training.output` takes the folder for empty.
    probe = output / f".seen-by-all-{secrets.token_hex(8)}.tmp"
    probe.write_text("")
    try:
        yield probe
    finally:
        probe.delete()


class _MessagePrinter:
    """Prints the lines that are appended to a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._printed = 0

    def poll(self) -> None:
        """Print new lines."""
        lines = self._file.read_text().splitlines()
        for line in lines[self._printed :]:
            print(line, flush=True)
        self._printed = len(lines)


def _run_in_thread(work: Callable[[], object], *polls: Callable[[], None]) -> None:
    """Run `work` in a thread and call `polls` every half second until it ends. Raises its error.

    In the main thread Ray Train would handle Ctrl-C itself and exit with its own code.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        for poll in polls:
            poll()
    if errors:
        raise errors[0]


def _user_error(error: BaseException) -> Exception | None:
    """The error for the user that Ray Train's error wraps, if any."""
    inner: Any = getattr(error, "controller_failure", None)
    for failure in (error, inner, *getattr(error, "worker_failures", {}).values()):
        known = find_user_error(failure) if isinstance(failure, BaseException) else None
        if known is not None:
            return known
    return None
