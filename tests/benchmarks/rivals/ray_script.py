"""Ray Data as its documentation shows batch inference on images: read, one actor with the model, write.

The actor has its default resources, one CPU. `finished` is only for the benchmark.

    python -m tests.benchmarks.rivals.ray_script PHOTOS OUTPUT [--model REF] [--cores N]
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from tests.benchmarks.rivals.arguments import parse_arguments
from tests.benchmarks.rivals.plain_captioner import BATCH, PlainCaptioner


class Captioner:
    """Images to captions, a batch at a time."""

    def __init__(self, model: str | None) -> None:
        self.captioner = PlainCaptioner(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pixels = np.stack([self.captioner.preprocess(image) for image in batch["image"]])
        captions = self.captioner.caption(pixels)
        return {
            "image_id": np.array([Path(path).name for path in batch["path"]]),
            "caption": np.array(captions),
            "finished": np.full(len(captions), time.time()),
        }


def main() -> None:
    args = parse_arguments(__doc__)
    ray.init(address="local", num_cpus=args.cores, include_dashboard=False)
    photos = ray.data.read_images(str(args.photos), mode="RGB", include_paths=True)
    captions = photos.map_batches(
        Captioner,
        fn_constructor_args=(args.model,),
        compute=ActorPoolStrategy(size=1),
        batch_size=BATCH,
    )
    captions.write_parquet(str(args.output))


if __name__ == "__main__":
    main()
