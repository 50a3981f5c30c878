"""CPU-seconds per image of a captioner alone, in one process with one thread: decode, encode, generate.

It also runs on older revisions of this repository, so it uses only what they have too.

    python -P tests/benchmarks/captioner_rate.py PHOTOS RESULT.json
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import captioning
from captioning import load_captioner

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("result", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(1)
    captioner = load_captioner(device="cpu")
    files = [path.read_bytes() for path in sorted(args.photos.iterdir())]
    batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    seconds = dict.fromkeys(("decode", "encode", "generate"), 0.0)
    texts: list[str] = []
    # The first batch runs an extra time, to warm up.
    for number, batch in enumerate([batches[0], *batches]):
        begin = time.process_time()
        pixels = np.stack([captioner.preprocess.from_bytes(data).pixels for data in batch])
        decoded = time.process_time()
        features = captioner.encode(pixels)
        encoded = time.process_time()
        captions = captioner.caption_features(features, captioner.decoding)
        captioned = time.process_time()
        if number > 0:
            texts += [caption.text for caption in captions]
            seconds["decode"] += decoded - begin
            seconds["encode"] += encoded - decoded
            seconds["generate"] += captioned - encoded
    stages = {name: total / len(files) for name, total in seconds.items()}
    found = {"code": captioning.__file__, "images": len(files), "cpu_seconds_an_image": stages, "captions": texts}
    args.result.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
