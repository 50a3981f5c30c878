"""The rival: captions a folder with a PyTorch DataLoader: workers decode, one process runs the model on all cores.

`finished` is there for the benchmark alone.

    python -m tests.benchmarks.dataloader_loop PHOTOS OUTPUT [--model REF] [--cores N]
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from captioning import load_captioner
from captioning.data.preprocess import Preprocess, PreprocessSettings


class Photos(Dataset[tuple[str, torch.Tensor]]):
    """A folder's photos as the captioner sees them."""

    def __init__(self, folder: Path, settings: PreprocessSettings) -> None:
        self.paths = sorted(folder.iterdir())
        self.preprocess = Preprocess(settings)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[str, torch.Tensor]:
        path = self.paths[place]
        with Image.open(path) as image:
            pixels = self.preprocess(np.asarray(image.convert("RGB")))
        return path.name, torch.from_numpy(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    args = parser.parse_args()

    torch.set_num_threads(args.cores)
    captioner = load_captioner(args.model, device="cpu")
    loader = DataLoader(Photos(args.photos, captioner.preprocess.settings), batch_size=32, num_workers=args.cores)
    args.output.mkdir(parents=True)
    schema = pa.schema(
        [("image_id", pa.string()), ("caption", pa.string()), ("score", pa.float32()), ("finished", pa.float64())]
    )
    with pq.ParquetWriter(args.output / "captions.parquet", schema) as writer:
        for names, pixels in loader:
            captions = captioner.caption_pixels(pixels.numpy())
            texts, scores = [caption.text for caption in captions], [caption.score for caption in captions]
            columns = [list(names), texts, scores, [time.time()] * len(texts)]
            writer.write_table(pa.table(columns, schema=schema))


if __name__ == "__main__":
    main()
