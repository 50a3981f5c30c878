"""Daft with the model as a class with a batch method: one process per core, one thread each.

`finished` is only for the benchmark. Daft comes with the extra `bench`.

    python -m tests.benchmarks.rivals.daft_script PHOTOS OUTPUT [--model REF] [--cores N]
"""

import time
from pathlib import Path
from typing import Any

import daft
import torch
from daft import DataType, Series

from tests.benchmarks.rivals.arguments import parse_arguments
from tests.benchmarks.rivals.plain_captioner import BATCH, PlainCaptioner

_ROW = {"image_id": DataType.string(), "caption": DataType.string(), "finished": DataType.float64()}


class Captioner:
    """Image files to captions, a batch at a time."""

    def __init__(self, model: str | None) -> None:
        torch.set_num_threads(1)
        self.captioner = PlainCaptioner(model)

    @daft.method.batch(return_dtype=DataType.struct(_ROW), unnest=True, batch_size=BATCH)
    def caption(self, paths: Series, files: Series) -> list[dict[str, Any]]:
        captions = self.captioner.caption(self.captioner.pixels(files.to_pylist()))
        names = [Path(path).name for path in paths.to_pylist()]
        finished = time.time()
        return [
            {"image_id": name, "caption": caption, "finished": finished}
            for name, caption in zip(names, captions, strict=True)
        ]


def main() -> None:
    args = parse_arguments(__doc__)
    captioner = daft.cls(Captioner, max_concurrency=args.cores, use_process=True)(args.model)
    photos = daft.from_glob_path(f"{args.photos}/*")
    rows = photos.select(captioner.caption(photos["path"], photos["path"].download()))
    rows.write_parquet(str(args.output))


if __name__ == "__main__":
    main()
