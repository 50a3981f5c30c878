"""The command line that the rivals' programs share."""

import argparse
import os
from pathlib import Path


def parse_arguments(description: str | None) -> argparse.Namespace:
    """`photos` and `output`, folders; `model`, a reference or None; `cores`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", metavar="REF", help="the captioner (default: the bundled one)")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    return parser.parse_args()
