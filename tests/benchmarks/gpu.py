"""Training on a GPU: steps of both families at their published sizes, in bf16, with and without torch.compile.

Weights are random, images noise and captions words drawn by lot, since none of them changes what a
step costs. ResNet-101 with attention and an LSTM is as in `configs/train/resnet101-lstm.yaml`, CLIP
ViT-B/32 with GPT-2 small as in `configs/train/clip-gpt2.yaml`. Needs no Ray; every result is a line
that is written as soon as it is there, since compiling takes minutes.

    python -m tests.benchmarks.gpu RESULT.jsonl [--steps N] [--device cuda] [--eager]
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioning.config import read_settings
from captioning.data.augment import Augment
from captioning.data.preprocess import Preprocess
from captioning.data.shards import ShardInfo, ShardSet
from captioning.data.tokenizers import load_tokenizer
from captioning.models.base import PAD_TARGET, Vocabulary
from captioning.models.registry import build_model
from captioning.refs import resolve
from captioning.storage import Location
from captioning.training.batches import Batch, Collator
from captioning.training.objectives.cross_entropy import CrossEntropy
from captioning.training.settings import TrainSettings
from captioning.training.sources import ImageSource
from captioning.training.stage import Stage
from captioning.training.workers import Workers

#: Captions of an image, and tokens of a caption, as in Flickr30k.
_CAPTIONS, _TOKENS = 5, (8, 18)
#: Steps that are not timed: memory is found, kernels are chosen.
_WARM_UP = 5
_STEPS_OF_EPOCH = 1000


@dataclass(frozen=True)
class Case:
    """What is trained, and whether the frozen part's features are at hand, as from a feature cache."""

    vocabulary: int
    settings: str
    kept: bool


_RESNET_LSTM = """
model: {kind: cnn_lstm, embedding_size: 512, hidden_size: 512, dropout: 0.5,
        encoder: {name: torchvision/resnet101, weights: random, tune_from: %s}}
preprocess: {size: 448}
"""
_CLIP_GPT2 = """
model: {kind: clip_gpt2, clip: {hidden_size: 768}, gpt2: {n_embd: 768}, train: %s}
preprocess: {size: 224, mean: [122.7709383, 116.7460125, 104.09373615], std: [68.5005327, 66.6321579, 70.32316305]}
"""
CASES = {
    "resnet101-lstm, decoder on kept features": Case(8000, _RESNET_LSTM % "null", kept=True),
    "resnet101-lstm, the encoder's last stage too": Case(8000, _RESNET_LSTM % "layer4", kept=False),
    "clip-gpt2, mapper and GPT-2 on kept features": Case(50257, _CLIP_GPT2 % "decoder", kept=True),
    "clip-gpt2, all of it": Case(50257, _CLIP_GPT2 % "all", kept=False),
}


def measure(case: Case, *, images: int, steps: int, device: torch.device, compiled: bool) -> dict[str, Any]:
    """What steps of `images` images cost, all in one pass."""
    given = [f"images_per_step={images}", f"images_per_pass={images}", f"compile={str(compiled).lower()}"]
    stage = make_stage(read_settings(TrainSettings, case.settings, [*given, "precision=bf16"]), case, device)
    batch = make_batch(stage, case)
    first, *seconds = [_timed(stage, batch, number) for number in range(1 + _WARM_UP + steps)]
    seconds = seconds[_WARM_UP:]
    step = statistics.median(seconds)
    on_gpu = device.type == "cuda"
    return {
        "compiled": compiled,
        "device": torch.cuda.get_device_name() if on_gpu else device.type,
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in stage.model.parameters()),
        "trained": sum(parameter.numel() for parameter in stage.trained),
        "images": images,
        "captions": len(batch.captions),
        "steps_per_second": 1 / step,
        "images_per_second": images / step,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "first_step_seconds": first,
        "raw_seconds": seconds,
    }


def make_stage(settings: TrainSettings, case: Case, device: torch.device) -> Stage:
    """A stage of training that is given its batches, rather than reading them."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(case.vocabulary, case.vocabulary - 1, case.vocabulary - 1)
    model = build_model(settings.model, vocabulary, settings.preprocess, pretrained=False)
    for name, weight in model.named_parameters():
        if name.endswith("bn3.weight"):
            # Random residuals would grow from block to block until they are no numbers.
            torch.nn.init.zeros_(weight)
    samples = settings.images_per_step * _STEPS_OF_EPOCH
    train = (ShardInfo("train-000000.tar", samples, samples * _CAPTIONS, 0),)
    shards = ShardSet(Location.parse("nowhere"), "benchmark", "benchmark", {"train": train})
    batches = Collator(
        Preprocess(settings.preprocess),
        load_tokenizer(resolve("flickr-lstm")[1]),
        Augment(flip=False, crop=1.0, seed=0),
        max_tokens=settings.max_tokens,
    )
    return Stage(0, settings, model, CrossEntropy(), ImageSource(shards, seed=1), batches, Workers(device=device))


def make_batch(stage: Stage, case: Case) -> Batch:
    """A batch as training reads it, in the memory that it is copied from."""
    images, size = stage.settings.images_per_step, stage.settings.preprocess.size
    pixels = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8)
    count = images * _CAPTIONS
    lengths = torch.randint(_TOKENS[0], _TOKENS[1] + 1, (count, 1))
    captions = torch.randint(0, case.vocabulary - 1, (count, _TOKENS[1]))
    captions[torch.arange(_TOKENS[1]) >= lengths] = PAD_TARGET
    of_image = torch.arange(images).repeat_interleave(_CAPTIONS)
    keys = tuple(str(number) for number in range(images))
    stem: Tensor | None = None
    if case.kept:
        with stage.autocast():
            stem = stage.model.stem(pixels.to(stage.workers.device)).cpu().half()
    batch = Batch(keys, None if case.kept else pixels, captions, of_image, stem=stem)
    return batch.pin_memory() if stage.workers.device.type == "cuda" else batch


def _timed(stage: Stage, batch: Batch, number: int) -> float:
    begin = time.perf_counter()
    stage.step([batch], number)
    if stage.workers.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed (default: 30)")
    parser.add_argument("--images", type=int, default=64, help="images of a step (default: 64)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="without torch.compile alone")
    args = parser.parse_args()
    device = torch.device(args.device)
    for compiled in (False,) if args.eager else (False, True):
        for name, case in CASES.items():
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            found = measure(case, images=args.images, steps=args.steps, device=device, compiled=compiled)
            with args.result.open("a") as file:
                file.write(json.dumps({"case": name, **found}) + "\n")
            gib = (found["peak_bytes"] or 0) / 2**30
            rates = f"{found['steps_per_second']:.2f} steps/s, {found['images_per_second']:,.0f} images/s"
            start = f"first step {found['first_step_seconds']:.1f} s"
            print(f"{name}{', compiled' * compiled}: {rates}, {gib:.1f} GiB, {start}", flush=True)


if __name__ == "__main__":
    main()
