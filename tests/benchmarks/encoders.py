"""Compares the image encoder's back ends and precisions: CPU-milliseconds an image, memory, captions.

Each configuration runs in its own process with one thread; in each round all caption the same photos, in turn.
Captions are compared with those of eager float32.

    python -m tests.benchmarks.encoders RESULT.json --photos FOLDER [--count 500] [--rounds 3] [--model REF]
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BATCH = 32
#: Configurations: precision and back end.
WAYS = (("fp32", "eager"), ("fp32", "auto"), ("bf16", "eager"), ("bf16", "auto"), ("int8", "auto"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        precision, encoder = args.way.split(",")
        args.result.write_text(json.dumps(measure(args.model, precision, encoder, args.photos, args.count)))
        return
    turns: list[dict[str, Any]] = []
    for number in range(args.rounds):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.encoders",
                str(args.result),
                "--photos",
                str(args.photos),
            ]
            command += ["--count", str(args.count), "--way", ",".join(way)]
            subprocess.run(command + (["--model", args.model] if args.model else []), check=True)
            turns.append(
                {"round": number, "precision": way[0], "encoder": way[1], **json.loads(args.result.read_text())}
            )
    for line in table(turns):
        print(line)
    args.result.write_text(json.dumps(turns, indent=1) + "\n")


def measure(model: str | None, precision: Any, encoder: Any, photos: Path, count: int) -> dict[str, Any]:
    """Load and caption once: CPU-seconds an image for encoding and generating, and the peak memory in bytes."""
    import resource

    import numpy as np
    import torch

    from captioning import load_captioner

    torch.set_num_threads(1)
    load_captioner(model, device="cpu", encoder="eager")
    begin = time.process_time()
    captioner = load_captioner(model, device="cpu", precision=precision, encoder=encoder)
    loaded = time.process_time() - begin
    paths = sorted(photos.iterdir())[:count]
    encoding = generating = 0.0
    captions: list[str] = []
    for start in range(-BATCH, len(paths), BATCH):
        # The first batch runs once more, beforehand, as a warm-up.
        some = paths[max(0, start) :][:BATCH]
        pixels = np.stack([captioner.preprocess.from_bytes(path.read_bytes()).pixels for path in some])
        begin = time.process_time()
        features = captioner.encode(pixels)
        encoded = time.process_time()
        found = captioner.caption_features(features, captioner.decoding)
        if start >= 0:
            encoding += encoded - begin
            generating += time.process_time() - encoded
            captions += [caption.text for caption in found]
    return {
        "chosen": str(captioner.encoder),
        "load": loaded,
        "encode": encoding / len(paths),
        "generate": generating / len(paths),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "captions": captions,
    }


def table(turns: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table with a row for each configuration: the minimum of the rounds."""
    lines = ["| precision, encoder | load again, s | encode, ms | generate, ms | peak, MiB | captions that differ |"]
    lines.append("|---|---|---|---|---|---|")
    reference = next(turn["captions"] for turn in turns if (turn["precision"], turn["encoder"]) == WAYS[0])
    for precision, encoder in WAYS:
        rounds = [turn for turn in turns if (turn["precision"], turn["encoder"]) == (precision, encoder)]
        load, encode, generate, peak = (
            min(turn[key] for turn in rounds) for key in ("load", "encode", "generate", "peak")
        )
        differ = max(sum(a != b for a, b in zip(turn["captions"], reference, strict=True)) for turn in rounds)
        lines.append(
            f"| {precision}, {encoder} | {load:.2f} | {1000 * encode:.1f} | {1000 * generate:.1f} | {peak / 2**20:.0f} "
            f"| {differ} of {len(reference)} |"
        )
    return lines


if __name__ == "__main__":
    main()
