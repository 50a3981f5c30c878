"""What training's input costs: steps on kept features, and on images that are streamed, beside the same in memory.

`flickr-lstm` is trained as its recipe does: on kept features the decoder alone, the cheapest step
there is, on which input weighs most; on streamed images the encoder's last blocks too. In each
round an epoch is trained on the same batches twice, as they come from the feature cache (or as
images are decoded from the shards) and out of memory, in turn, in another order each round. Two
workers are two processes joined by gloo. A worker has one thread, besides the one that reads ahead.

    python -m tests.benchmarks.training RESULT.json [--shards SHARDS] [--images N] [--rounds R] [--workers W]…
"""

import argparse
import json
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from captioning.config import read_settings
from captioning.data.shard_plan import PlannedSample, PlannedShard
from captioning.data.shard_writer import write_shard
from captioning.data.shards import Sample, ShardSet, iterate_shard
from captioning.data.tokenizers import load_tokenizer
from captioning.data.word_tokenizer import WordTokenizer
from captioning.refs import resolve
from captioning.storage import Location
from captioning.training.batches import Batch
from captioning.training.parts import make_parts
from captioning.training.settings import TrainSettings
from captioning.training.stage import Stage
from captioning.training.stage_builder import StageBuilder
from captioning.training.workers import Workers
from tests.benchmarks.photos import collect_photos

MODEL = "flickr-lstm"
#: As in the recipe of `flickr-lstm`.
SETTINGS = f"""
init: {MODEL}
images_per_step: 32
images_per_pass: 16
label_smoothing: 0.1
optim: {{ema_decay: 0.995}}
flip: true
crop: 0.6
views: 2
precision: bf16
"""
#: A frozen encoder, whose features are kept; and one whose last blocks learn while images stream.
CASES = {
    "cached": ("tune={encoder: {tune_from: null}}", "feature_cache=auto"),
    "streaming": ("tune={encoder: {tune_from: blocks.5}}", "scheduled_sampling=0.2", "feature_cache=null"),
}
#: Captions of an image and words of a caption, in made shards; Flickr30k has 5, and 12.3 on average.
_CAPTIONS, _WORDS = 5, (7, 17)
#: Longer side in pixels of made photos: Flickr30k's.
_SIDES = (500,)
_SHARD_SIZE = 512


def make_shards(source: str | None, folder: Path, count: int) -> ShardSet:
    """Training shards of `count` images: those of `source`, or made photos with captions of words drawn by lot."""
    photos = folder / "photos"
    samples = _made(photos, count) if source is None else _copied(source, photos, count)
    planned = [PlannedSample(s.key, s.key, f"{s.key}.jpg", len(s.image), s.captions, "train") for s in samples]
    target = Location.parse(str(folder / "shards"))
    reports = [
        write_shard(
            target,
            Location.parse(str(photos)),
            PlannedShard(f"train-{number:06d}.tar", tuple(planned[at : at + _SHARD_SIZE])),
            jpeg_quality=95,
        )
        for number, at in enumerate(range(0, len(planned), _SHARD_SIZE))
    ]
    shards = ShardSet(target, "benchmark", f"benchmark-{count}", {"train": tuple(report.info for report in reports)})
    (target / "shards.json").write_text(json.dumps(shards.to_json()))
    return shards


def _copied(source: str, photos: Path, count: int) -> Iterator[Sample]:
    photos.mkdir(parents=True)
    shards = ShardSet.open(Location.parse(source))
    found = (sample for shard in shards.split("train") for sample in iterate_shard(shards.location, shard.name))
    for _, sample in zip(range(count), found, strict=False):
        (photos / f"{sample.key}.jpg").write_bytes(sample.image)
        yield sample


def _made(photos: Path, count: int) -> Iterator[Sample]:
    tokenizer = load_tokenizer(resolve(MODEL)[1])
    assert isinstance(tokenizer, WordTokenizer)
    words, chance = np.array(tokenizer.words), np.random.default_rng(0)
    collect_photos(None, photos, count, sides=_SIDES)
    for path in sorted(photos.iterdir()):
        lengths = chance.integers(*_WORDS, size=_CAPTIONS, endpoint=True)
        captions = tuple(" ".join(chance.choice(words, length)) for length in lengths)
        yield Sample(path.stem, path.read_bytes(), captions, "train")


def measure_worker(rank: int, world: int, port: int, folder: str, rounds: int) -> None:
    """Train as one of `world` workers; rank 0 leaves the raw timings in `folder`."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    workers = Workers.from_process_group()
    shards = ShardSet.open(Location.parse(f"{folder}/shards"))
    turns = []
    for case, given in CASES.items():
        stage = _stage(shards, Location.parse(f"{folder}/run"), workers, given)
        kept = list(stage.epoch(0, start=0))
        for number in range(-1, rounds):
            ways = {"seconds": stage.epoch(0, start=0), "memory_seconds": kept}
            found = {name: _train(stage, ways[name]) for name in [*ways][:: -1 if number % 2 else 1]}
            # The first warms up.
            if number >= 0:
                cpu = {f"cpu_{name}": each[1] for name, each in found.items()}
                seconds = {name: each[0] for name, each in found.items()}
                images = shards.counts["train"]
                turns.append({"case": case, "workers": world, "round": number, "images": images, **seconds, **cpu})
    if rank == 0:
        (Path(folder) / f"turns-{world}.json").write_text(json.dumps(turns))
    if world > 1:
        dist.destroy_process_group()


def _stage(shards: ShardSet, output: Location, workers: Workers, given: Sequence[str]) -> Stage:
    settings = read_settings(TrainSettings, SETTINGS, [f"workers={workers.world_size}", *given])
    parts = make_parts(settings, load_tokenizer(resolve(MODEL)[1]))
    return StageBuilder(settings, parts, shards, output, workers).build_stage(0, None, log=lambda _: None)


def _train(stage: Stage, epoch: Iterable[list[Batch]]) -> tuple[float, float]:
    """Seconds of an epoch, its first batch included, and CPU-seconds of all workers."""
    stage.workers.gather(True)
    begin, cpu = time.perf_counter(), time.process_time()
    for number, passes in enumerate(epoch):
        stage.step(passes, number)
    used = time.process_time() - cpu
    total = stage.workers.sum(used)
    return time.perf_counter() - begin, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--shards", metavar="URI", help="training shards (default: made photos and captions)")
    parser.add_argument("--images", type=int, default=512, help="images of an epoch (default: 512)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    turns: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="captioning-bench-") as folder:
        make_shards(args.shards, Path(folder), args.images)
        for world in args.workers:
            given = (world, _free_port(), folder, args.rounds)
            spawn(measure_worker, given, nprocs=world)  # type: ignore[no-untyped-call]
            turns += json.loads((Path(folder) / f"turns-{world}.json").read_text())
    args.result.write_text(json.dumps(turns, indent=2) + "\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
