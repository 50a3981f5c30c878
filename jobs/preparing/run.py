"""Turns a dataset's images and captions into training shards, in parallel on Ray.

Reading captions, planning, and writing a shard are in `captioning.data`. The counts file is written last: without it
a folder is not a set of shards.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from captioning.data.annotations import read_annotations, read_splits
from captioning.data.images import IMAGE_EXTENSIONS
from captioning.data.problems import Problems
from captioning.data.shard_plan import PlannedShard, cut_shards, plan_identity, plan_samples
from captioning.errors import InputError, RunConflictError, StorageError, UsageError
from captioning.storage import Location
from jobs.preparing.settings import PrepareSettings

#: Written first, so that an interrupted `prepare` can be resumed.
PLAN_FILE = "prepare.json"
#: With fewer validation images than this a note is printed.
_FEW_IMAGES = 10


def prepare_dataset(
    dataset: str, images: str, captions: str, splits: str | None, output: str, options: PrepareSettings
) -> dict[str, int]:
    """Write the shards of a dataset and print a summary. Returns the number of samples by split.

    Raises `InputError` if nothing can be used, and `RunConflictError` if the output holds other shards.
    """
    from captioning.data.shards import COUNTS_FILE, ShardSet

    source, target = Location.parse(images, options.storage), Location.parse(output, options.storage)
    problems = Problems()
    annotations = read_annotations(
        dataset, _read(captions, "--captions", options), problems, where=_file_name(captions)
    )
    by_image = None if splits is None else read_splits(_read(splits, "--splits", options), where=_file_name(splits))
    if not source.is_dir():
        raise InputError(f"--images {images} is not a readable folder. Pass the folder that contains the photos.")
    samples = plan_samples(
        annotations,
        source.walk(),
        by_image,
        problems,
        val_fraction=options.val_fraction,
        extensions=IMAGE_EXTENSIONS,
    )
    shards = cut_shards(samples, shard_samples=options.shard_samples)
    identity = plan_identity(shards, jpeg_quality=options.jpeg_quality)
    _check_output(target)
    if _is_done(target, identity, shards):
        counts = ShardSet.open(target).counts
        print(f"Already prepared: {output} holds these shards. {_summary(counts)}")
        return counts
    by_hash = by_image is None and not any(annotation.split for annotation in annotations)
    if by_hash:
        print(f"No splits were given: {options.val_fraction:.1%} of the images go to val, the others to train.")
    (target / PLAN_FILE).write_text(json.dumps({"dataset": dataset, "identity": identity}) + "\n")
    infos: dict[str, Any] = {}
    for report in _write_shards(target, source, shards, options):
        infos[report.info.name] = report.info
        problems.merge(report.problems)
    by_split: dict[str, list[Any]] = {}
    for shard in shards:
        by_split.setdefault(shard.samples[0].split, []).append(infos[shard.name])
    done = ShardSet(target, dataset, identity, {split: tuple(found) for split, found in by_split.items()})
    for line in problems.lines():
        print(f"  {line}")
    if not sum(done.counts.values()):
        for name in [*infos, PLAN_FILE]:
            (target / name).delete()
        raise InputError(f"None of the images in {images} could be decoded. Check that the files are images.")
    (target / COUNTS_FILE).write_text(json.dumps(done.to_json(), indent=1) + "\n")
    print(f"Prepared {output}: {_summary(done.counts)}, in {len(shards):,} shards.")
    if by_hash and done.counts.get("val", 0) < _FEW_IMAGES:
        print(
            f"Note: only {done.counts.get('val', 0)} images are in val, which decides what `train` keeps. For more, "
            f"prepare into another folder with --set val_fraction={enough_to_validate(sum(done.counts.values()))}."
        )
    return done.counts


def enough_to_validate(images: int) -> float:
    """A `val_fraction` that is likely to put enough of `images` images into `val`; half at most."""
    return min(0.5, math.ceil(100 * 1.5 * _FEW_IMAGES / max(images, 1)) / 100)


def _write_shards(
    target: Location, source: Location, shards: Sequence[PlannedShard], options: PrepareSettings
) -> Iterator[Any]:
    """The reports of the shards in order, as Ray tasks finish them."""
    import ray

    from captioning.data.shard_writer import write_shard
    from jobs.progress import Progress
    from jobs.ray_session import ray_session

    with ray_session(), Progress(len(shards), noun="shard") as progress:
        # Writing a shard is idempotent, so a task whose worker died may be retried.
        task = ray.remote(num_cpus=1, max_retries=2)(write_shard)
        waiting = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        pending: list[Any] = []
        for shard in [*shards, *[None] * waiting]:
            if len(pending) == waiting or (shard is None and pending):
                yield ray.get(pending.pop(0))
                progress.add(1, 0)
            if shard is not None:
                pending.append(task.remote(target, source, shard, jpeg_quality=options.jpeg_quality))


def _check_output(target: Location) -> None:
    try:
        if target.info() is not None:
            raise UsageError(f"-o {target} is a file. Pass a folder or a URI for the shards.")
        target.check_writable()
    except StorageError as error:
        if error.transient:
            raise
        raise UsageError(f"Shards cannot be written to {target}: {error}") from error


def _is_done(target: Location, identity: str, shards: Sequence[PlannedShard]) -> bool:
    """Whether `target` holds all shards of this plan; False if it is empty or they are unfinished."""
    from captioning.data.shards import COUNTS_FILE

    names = target.names()
    if PLAN_FILE in names:
        try:
            held = json.loads((target / PLAN_FILE).read_text())["identity"]
        except (ValueError, KeyError, TypeError):
            held = None
        if held == identity:
            return {COUNTS_FILE, *(shard.name for shard in shards)} <= set(names)
    elif COUNTS_FILE not in names and not any(name.endswith(".tar") for name in names):
        return False
    raise RunConflictError(
        f"{target} holds the shards of another dataset, or of this one with other images, captions, splits or "
        f"settings. Choose another output with -o, or delete that folder first."
    )


def _read(file: str, option: str, options: PrepareSettings) -> bytes:
    try:
        return Location.parse(file, options.storage).read_bytes()
    except StorageError as error:
        if error.transient:
            raise
        raise InputError(f"{option} {file} cannot be read: {error} Pass the dataset's file.") from error


def _file_name(file: str) -> str:
    return Location.parse(file).name


def _summary(counts: dict[str, int]) -> str:
    each = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    return f"{sum(counts.values()):,} samples ({each})"
