"""The rival: captions a folder with Ray Data, written the way its user guide leads one to.

One actor a core, half a CPU each: actors that reserve every CPU leave none for reading, and hang.
`finished` is there for the benchmark alone.

    python -m tests.benchmarks.ray_data_script PHOTOS OUTPUT [--model REF] [--cores N]
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from captioning import load_captioner
from captioning.captioner_info import inspect_captioner
from captioning.data.preprocess import Preprocess, PreprocessSettings


class Resize:
    """One photo to the pixels that the captioner sees."""

    def __init__(self, settings: PreprocessSettings) -> None:
        self.preprocess = Preprocess(settings)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"image_id": Path(row["path"]).name, "pixels": self.preprocess(row["image"])}


class CaptionBatch:
    """A batch of pixels to captions, in an actor with one thread."""

    def __init__(self, model: str | None) -> None:
        torch.set_num_threads(1)
        self.captioner = load_captioner(model, device="cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        captions = self.captioner.caption_pixels(batch["pixels"])
        return {
            "image_id": batch["image_id"],
            "caption": np.array([caption.text for caption in captions]),
            "score": np.array([caption.score for caption in captions], np.float32),
            "finished": np.full(len(captions), time.time()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("output")
    parser.add_argument("--model")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    args = parser.parse_args()

    ray.init(address="local", num_cpus=args.cores, include_dashboard=False)
    settings = inspect_captioner(args.model).preprocess
    photos = ray.data.read_images(args.photos, mode="RGB", include_paths=True)
    pixels = photos.map(Resize(settings).__call__)
    captions = pixels.map_batches(
        CaptionBatch,
        fn_constructor_args=(args.model,),
        batch_size=32,
        num_cpus=0.5,
        compute=ActorPoolStrategy(size=args.cores),
    )
    captions.write_parquet(args.output)


if __name__ == "__main__":
    main()
