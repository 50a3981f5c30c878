"""Ray Data, tuned by its user guide: one single-threaded actor per core, preprocessing in tasks.

Half a CPU per actor: actors that reserve every CPU leave none for reading, and the run hangs.
`finished` is only for the benchmark.

    python -m tests.benchmarks.rivals.ray_tuned PHOTOS OUTPUT [--model REF] [--cores N]
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from captioning.captioner_info import inspect_captioner
from captioning.data.preprocess import Preprocess, PreprocessSettings
from tests.benchmarks.rivals.arguments import parse_arguments
from tests.benchmarks.rivals.plain_captioner import BATCH, PlainCaptioner


class Resize:
    """One photo to the captioner's input pixels."""

    def __init__(self, settings: PreprocessSettings) -> None:
        self.preprocess = Preprocess(settings)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"image_id": Path(row["path"]).name, "pixels": self.preprocess(row["image"])}


class Captioner:
    """A batch of pixels to captions, in an actor with one thread."""

    def __init__(self, model: str | None) -> None:
        torch.set_num_threads(1)
        self.captioner = PlainCaptioner(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        captions = self.captioner.caption(batch["pixels"])
        return {
            "image_id": batch["image_id"],
            "caption": np.array(captions),
            "finished": np.full(len(captions), time.time()),
        }


def main() -> None:
    args = parse_arguments(__doc__)
    ray.init(address="local", num_cpus=args.cores, include_dashboard=False)
    settings = inspect_captioner(args.model).preprocess
    photos = ray.data.read_images(str(args.photos), mode="RGB", include_paths=True)
    pixels = photos.map(Resize(settings).__call__)
    captions = pixels.map_batches(
        Captioner,
        fn_constructor_args=(args.model,),
        batch_size=BATCH,
        num_cpus=0.5,
        compute=ActorPoolStrategy(size=args.cores),
    )
    captions.write_parquet(str(args.output))


if __name__ == "__main__":
    main()
