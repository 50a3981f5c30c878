"""The minimum that captioning a few photos takes: import, load, caption, print.

python -m tests.benchmarks.bare PHOTOS [--model REF] [--plain]
"""

import argparse
import os
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", metavar="REF")
    parser.add_argument("--plain", action="store_true", help="in plain PyTorch")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    photos = sorted(args.photos.iterdir())
    if args.plain:
        from tests.benchmarks.rivals.plain_captioner import PlainCaptioner

        plain = PlainCaptioner(args.model)
        texts = plain.caption(plain.pixels([photo.read_bytes() for photo in photos]))
    else:
        from captioning import load_captioner

        texts = [caption.text for caption in load_captioner(args.model, device="cpu").caption(photos)]
    for photo, text in zip(photos, texts, strict=True):
        print(photo.name, text)


if __name__ == "__main__":
    main()
