"""Compares JPEG decoders: from a file's bytes to the model's input pixels, in CPU time of one thread.

Uses the given photos, and large ones. Each decoder's pixels are compared with Pillow's.

    python -m tests.benchmarks.jpegs PHOTOS RESULT.json [--rounds R] [--size PIXELS]
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from captioning.data.preprocess import Preprocess, PreprocessSettings

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_FILTER = Image.Resampling.BICUBIC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()

    torch.set_num_threads(1)
    files = [path.read_bytes() for path in sorted(args.photos.iterdir()) if path.suffix in (".jpg", ".jpeg")]
    ways = decoders()
    exact = [pillow(data, args.size) for data in files]
    turns = []
    for number in range(args.rounds):
        names = [*ways]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begin = time.process_time()
            found = [ways[name](data, args.size) for data in files]
            seconds = time.process_time() - begin
            difference = np.mean([np.abs(a.astype(np.int16) - b).mean() for a, b in zip(found, exact, strict=True)])
            turns.append(
                {
                    "decoder": name,
                    "round": number,
                    "images": len(files),
                    "cpu_seconds": seconds,
                    "mean_difference": float(difference),
                }
            )
    args.result.write_text(json.dumps(turns) + "\n")


def decoders() -> dict[str, Callable[[bytes, int], Pixels]]:
    """The decoders that are installed."""
    found = {"this package": ours, "Pillow": pillow, "Pillow, draft": pillow_draft, "torchvision": torchvision}
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return found
    return {**found, "simplejpeg": simplejpeg_whole, "simplejpeg, scaled": simplejpeg_scaled}


def ours(data: bytes, size: int) -> Pixels:
    """As in captioning and training."""
    return Preprocess(PreprocessSettings(size=size, mode="squash")).from_bytes(data).pixels


def pillow(data: bytes, size: int) -> Pixels:
    """Decoded at full size, resized by Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), _FILTER))


def pillow_draft(data: bytes, size: int) -> Pixels:
    """Decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 that is at least the target size."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (size, size))
    return np.asarray(image.convert("RGB").resize((size, size), _FILTER))


def torchvision(data: bytes, size: int) -> Pixels:
    """Decoded by torchvision, resized by PyTorch with antialiasing."""
    image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    resized: torch.Tensor = functional.resize(
        image, [size, size], interpolation=functional.InterpolationMode.BICUBIC, antialias=True
    )
    return resized.permute(1, 2, 0).numpy()


def simplejpeg_whole(data: bytes, size: int) -> Pixels:
    """Decoded by simplejpeg, resized by Pillow."""
    import simplejpeg

    return np.asarray(Image.fromarray(simplejpeg.decode_jpeg(data)).resize((size, size), _FILTER))


def simplejpeg_scaled(data: bytes, size: int) -> Pixels:
    """The same, decoded at the smallest scale that is at least the target size."""
    import simplejpeg

    image = simplejpeg.decode_jpeg(data, min_height=size, min_width=size)
    return np.asarray(Image.fromarray(image).resize((size, size), _FILTER))


if __name__ == "__main__":
    main()
