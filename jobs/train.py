"""The verb `train`: a captioner made from training shards, on as many workers as the settings ask.

Ray Train starts the workers and joins them; what they do is `captioning.training`.
"""

import threading
from collections.abc import Callable
from typing import Annotated, Any

import typer

from jobs.cli import ConfigOption, SetOption, find_user_error, read_config

#: Fewer images to validate on are told of.
_FEW = 10


def train(
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUTPUT", help="Folder or URI of the run.")],
    config: ConfigOption = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="URI", help="Training shards; over the setting `data`.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Train a captioner on the shards that `prepare` made. OUTPUT/best is its checkpoint.

    Stopped for whatever reason, the same command goes on from the last saved state. What happens is in
    OUTPUT/report.html, a page that is written anew at each evaluation, and in OUTPUT/metrics.jsonl. All
    settings are in configs/README.md. Examples:

    python -m jobs train --config configs/train/flickr-lstm.yaml --data build/shards -o build/flickr-lstm

    python -m jobs train --config configs/train/fine-tune.yaml --data build/mine --set init=flickr-lstm -o build/mine-1
    """
    from captioning.config import read_settings
    from captioning.data.shards import ShardSet
    from captioning.errors import UsageError
    from captioning.storage import Location
    from captioning.training.output import alone, check, is_finished
    from captioning.training.settings import TrainSettings

    text, where = read_config(config)
    overrides = [*(set_ or []), *([f"data={data}"] if data else [])]
    settings = read_settings(TrainSettings, text, overrides, where=where)
    if not settings.data:
        raise UsageError("There is nothing to train on: give --data URI, a folder of shards that `prepare` made.")
    shards = ShardSet.open(Location.parse(settings.data, settings.storage))
    _check_splits(shards, settings.validation.split)
    place = Location.parse(output, settings.storage)
    check(place, settings, shards)
    if is_finished(place):
        print(f"This run is finished: its captioner is {place / 'best'}. Nothing to do.")
        return
    with alone(place):
        _run(settings, place, shards)


def _check_splits(shards: Any, validation: str) -> None:
    """See that there is something to learn from and something to judge by; says so where it is little."""
    from captioning.errors import InputError

    shards.split("train")
    # Words that all images' references share count nothing in CIDEr-D: of one image, all of them.
    if shards.counts.get(validation, 0) < 2:
        having = ", ".join(f"{split} {count:,}" for split, count in shards.counts.items())
        raise InputError(
            f"Training is judged by the captions of the split {validation!r}, and {shards.location} has fewer than two "
            f"images there ({having}). Prepare the dataset again, into another folder, with --set val_fraction=0.2 or "
            "with a column `split` in its table; or name another split: --set validation.split=NAME."
        )
    count = shards.counts[validation]
    if count < _FEW:
        print(
            f"Note: {validation!r} has only {count} images. They decide which weights are kept, and their scores jump "
            "with every word. More of them: prepare with --set val_fraction=0.2."
        )


def _run(settings: Any, output: Any, shards: Any) -> None:
    from jobs.ray_session import ray_session
    from jobs.train_page import TrainPage
    from jobs.train_progress import Teller

    counts = ", ".join(f"{count:,} {split}" for split, count in shards.counts.items())
    print(f"Training on {shards.dataset} ({counts} images), {settings.workers} worker(s); the run is {output}")
    page = TrainPage(output, shards, settings.validation.split)
    with ray_session(), Teller(output, page):
        _fit(settings, output)
    print(f"Done. The captioner: {output / 'best'}   figures: {output / 'metrics.jsonl'}   page: {page.file}")
    print(f"Try it: python -m jobs caption FOLDER -o OUTPUT --model {output / 'best'}")


def _fit(settings: Any, output: Any) -> None:
    import tempfile

    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from captioning.errors import UnfinishedError, UsageError
    from captioning.training.state import saved_step

    workers = settings.workers
    have = ray.cluster_resources()
    gpu = have.get("GPU", 0) >= workers if settings.gpu is None else settings.gpu
    if gpu and have.get("GPU", 0) < workers:
        raise UsageError(
            f"{workers} worker(s) need as many GPUs, and Ray has {have.get('GPU', 0):g}. "
            "Lower `workers`, or train on CPUs with --set gpu=false."
        )
    # A share of what is there: workers that ask for more than there is would wait for ever.
    cpus = min(float(settings.threads_per_worker), 0.9 * have.get("CPU", 1) / workers)
    several_nodes = sum(node["Alive"] for node in ray.nodes()) > 1
    with tempfile.TemporaryDirectory(prefix="captioning-train-") as folder:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"settings": settings, "output": output, "gpu": gpu},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpu else {})}
            ),
            # States are ours, in OUTPUT: Ray Train only needs to start the workers again when a node is lost.
            run_config=RunConfig(
                name="run", storage_path=folder, failure_config=FailureConfig(max_failures=3 if several_nodes else 0)
            ),
        )
        try:
            _apart(trainer.fit)
        except KeyboardInterrupt:
            saved = saved_step(output)
            kept = "not saved yet" if saved is None else f"saved up to step {saved:,}"
            raise KeyboardInterrupt(f"Training is {kept}. Give the same command again to go on.") from None
        except Exception as error:
            raise _cause(error) or UnfinishedError(
                f"Training stopped: {_last_line(error)} Give the same command again to go on from the last saved state."
            ) from error


def _apart(work: Callable[[], object]) -> None:
    """Run `work` in a thread and wait; its error is raised here.

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
    if failed:
        raise failed[0]


def train_worker(config: dict[str, Any]) -> None:
    """What every worker runs, its process group already joined by Ray Train."""
    import torch

    from captioning.data.shards import ShardSet
    from captioning.storage import Location
    from captioning.training.loop import TrainingRun
    from captioning.training.output import claim, kept_tokenizer
    from captioning.training.parts import make_parts, make_tokenizer
    from captioning.training.workers import Workers

    settings, output = config["settings"], config["output"]
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
    run = TrainingRun(settings, parts, shards, output, workers, notes=notes)
    # Only when every worker could make its part is anything written: a wrong setting leaves OUTPUT free.
    workers.gather(True)
    if workers.rank == 0:
        claim(output, settings, shards, tokenizer)
    run.run()


def _cause(error: BaseException) -> Exception | None:
    """The user's error behind Ray Train's, if there is one."""
    for failure in (error, *getattr(error, "worker_failures", {}).values()):
        known = find_user_error(failure)
        if known is not None:
            return known
    return None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".") + "."
