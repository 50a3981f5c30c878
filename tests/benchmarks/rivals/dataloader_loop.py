"""A PyTorch DataLoader: one decoding worker per core, and one process that runs the model with a thread per core.

`finished` is only for the benchmark.

    python -m tests.benchmarks.rivals.dataloader_loop PHOTOS OUTPUT [--model REF] [--cores N]
"""

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from captioning.data.preprocess import Preprocess
from tests.benchmarks.rivals.arguments import parse_arguments
from tests.benchmarks.rivals.plain_captioner import BATCH, PlainCaptioner

_SCHEMA = pa.schema([("image_id", pa.string()), ("caption", pa.string()), ("finished", pa.float64())])


class Photos(Dataset[tuple[str, torch.Tensor]]):
    """A folder's photos as the captioner's input."""

    def __init__(self, folder: Path, preprocess: Preprocess) -> None:
        self.paths = sorted(folder.iterdir())
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[str, torch.Tensor]:
        path = self.paths[place]
        return path.name, torch.from_numpy(self.preprocess.from_bytes(path.read_bytes()).pixels)


def main() -> None:
    args = parse_arguments(__doc__)
    torch.set_num_threads(args.cores)
    captioner = PlainCaptioner(args.model)
    loader = DataLoader(Photos(args.photos, captioner.preprocess), batch_size=BATCH, num_workers=args.cores)
    args.output.mkdir(parents=True)
    with pq.ParquetWriter(args.output / "captions.parquet", _SCHEMA) as writer:
        for names, pixels in loader:
            captions = captioner.caption(pixels.numpy())
            columns = [list(names), captions, [time.time()] * len(captions)]
            writer.write_table(pa.table(columns, schema=_SCHEMA))


if __name__ == "__main__":
    main()
