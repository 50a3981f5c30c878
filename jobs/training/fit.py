"""A training's workers, started by Ray Train and started again when nodes are lost. What they do is `worker`'s.

States are ours, in OUTPUT: Ray Train keeps none, and needs no shared storage of its own.
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
from jobs.training.placement import place_workers
from jobs.training.room import RoomWatch, waits_for_places
from jobs.training.worker import train_worker
from jobs.user_errors import find_user_error

if TYPE_CHECKING:
    from captioning.storage import Location
    from captioning.training.settings import TrainSettings


def fit(settings: "TrainSettings", output: "Location") -> None:
    """Train on the Ray that this process is connected to, to the end.

    Raises the `CaptioningError` of a worker, `SettingsError` for what does not fit on the cluster,
    `UnfinishedError` when workers are lost over and over or no room for them is left, and
    `KeyboardInterrupt` with a message.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from jobs.training.lost_workers import LostWorkers, last_line
    from jobs.training.network import NodesConfig

    nodes = cluster_nodes()
    placement = place_workers(settings, nodes)
    several = len(nodes) > 1
    elastic = placement.least < placement.most
    with tempfile.TemporaryDirectory(prefix="captioning-train-") as folder, _mark(output, several=several) as mark:
        told = Path(folder) / "told"
        told.touch()
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "settings": settings,
                "output": output,
                "folder": str(Path.cwd()),
                "gpu": placement.gpu,
                "several_nodes": several,
                "mark": mark,
            },
            torch_config=NodesConfig() if several else None,
            scaling_config=ScalingConfig(
                num_workers=(placement.least, placement.most) if elastic else placement.most,
                use_gpu=placement.gpu,
                resources_per_worker={"CPU": placement.cpus, **({"GPU": 1} if placement.gpu else {})},
                placement_strategy=placement.strategy,
            ),
            run_config=RunConfig(
                name="run",
                storage_path=folder,
                # On several nodes it is `LostWorkers` that ends it.
                failure_config=FailureConfig(max_failures=-1 if several else 0),
                callbacks=[LostWorkers(output, told)] if several else [],
            ),
        )
        room = RoomWatch(placement, node_loads, partial(waits_for_places, placement), partial(print, flush=True))
        try:
            _apart(trainer.fit, _Told(told).look, room.look)
        except KeyboardInterrupt:
            saved = saved_step(output)
            kept = "not saved yet" if saved is None else f"saved up to step {saved:,}"
            raise KeyboardInterrupt(f"Training is {kept}. Give the same command again to go on.") from None
        except Exception as error:
            raise _cause(error) or UnfinishedError(
                f"Training stopped: {last_line(error)} Give the same command again to go on from the last saved state."
            ) from error


@contextmanager
def _mark(output: "Location", *, several: bool) -> Iterator["Location | None"]:
    """A file in a local OUTPUT by which workers on other nodes see that it is the same folder there."""
    if not (several and output.is_local):
        yield None
        return
    # A name that `training.output` takes for nobody's.
    mark = output / f".seen-by-all-{secrets.token_hex(8)}.tmp"
    mark.write_text("")
    try:
        yield mark
    finally:
        mark.delete()


class _Told:
    """Passes on what the workers write to a file for people."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines = 0

    def look(self) -> None:
        """Print what is new."""
        lines = self._file.read_text().splitlines()
        for line in lines[self._lines :]:
            print(line, flush=True)
        self._lines = len(lines)


def _apart(work: Callable[[], object], *looks: Callable[[], None]) -> None:
    """Run `work` in a thread, and these now and then until it has ended; its error is raised here.

    In the main thread Ray Train would take Ctrl-C for itself and end the process with a code of its own.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        for look in looks:
            look()
    if failed:
        raise failed[0]


def _cause(error: BaseException) -> Exception | None:
    """The user's error behind Ray Train's, if there is one."""
    inner: Any = getattr(error, "controller_failure", None)
    for failure in (error, inner, *getattr(error, "worker_failures", {}).values()):
        known = find_user_error(failure) if isinstance(failure, BaseException) else None
        if known is not None:
            return known
    return None
