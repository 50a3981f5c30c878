"""The ceiling: CPU-seconds per image in one process with one thread, without anything around it.

Fetch, decode, encode, generate and write run one after another, each timed with the process's CPU clock,
so that other programs on the machine do not count. Cores ÷ their sum is the rate of the same code if every
core did nothing else. An extra batch before the first warms up.

    python -m tests.benchmarks.ceiling PHOTOS RESULT.json [--model REF]
"""

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from captioning import load_captioner
from jobs.runners.pools import CPU_BATCH

#: As in the job.
BATCH = CPU_BATCH
#: Enough images for a stable figure.
MOST_BATCHES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--model")
    args = parser.parse_args()

    torch.set_num_threads(1)
    captioner = load_captioner(args.model, device="cpu")
    paths = sorted(args.photos.iterdir())
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)][:MOST_BATCHES]
    seconds = dict.fromkeys(("fetch", "decode", "encode", "generate", "write"), 0.0)
    images = 0
    for number, batch in enumerate([batches[0], *batches]):
        begin = time.process_time()
        files = [path.read_bytes() for path in batch]
        fetched = time.process_time()
        pixels = np.stack([captioner.preprocess.from_bytes(data).pixels for data in files])
        decoded = time.process_time()
        features = captioner.encode(pixels)
        encoded = time.process_time()
        captions = captioner.caption_features(features, captioner.decoding)
        captioned = time.process_time()
        rows = [{"image_id": path.name, **vars(caption)} for path, caption in zip(batch, captions, strict=True)]
        for row in rows:
            row["alternatives"] = [{"caption": text, "score": score} for text, score in row["alternatives"]]
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd")
        args.result.with_suffix(".parquet").write_bytes(file.getvalue())
        written = time.process_time()
        if number > 0:
            images += len(batch)
            seconds["fetch"] += fetched - begin
            seconds["decode"] += decoded - fetched
            seconds["encode"] += encoded - decoded
            seconds["generate"] += captioned - encoded
            seconds["write"] += written - captioned
    args.result.with_suffix(".parquet").unlink()
    stages = {name: total / images for name, total in seconds.items()}
    args.result.write_text(json.dumps({"images": images, "cpu_seconds_an_image": stages}) + "\n")


if __name__ == "__main__":
    main()
