"""The demo: captions real photos that come with installed packages, with the same commands that anyone gives."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from typer.main import get_command

from captioning.errors import InputError

#: The demo's output.
FOLDER = Path("build/demo")

#: Freely licensed photos: package, path in it, and the file name in the demo.
PHOTOS = (
    ("skimage", "data/astronaut.png", "astronaut.png"),
    ("skimage", "data/camera.png", "cameraman.png"),
    ("skimage", "data/chelsea.png", "cat.png"),
    ("skimage", "data/coffee.png", "coffee.png"),
    ("skimage", "data/motorcycle_left.png", "motorcycle.png"),
    ("skimage", "data/rocket.jpg", "rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg", "temple.jpg"),
    ("sklearn", "datasets/images/flower.jpg", "flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "grace_hopper.jpg"),
)


def copy_photos(folder: Path) -> int:
    """Copy the sample photos into `folder` and return their number. Raises `InputError` when there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    copied = 0
    for package, place, name in PHOTOS:
        spec = importlib.util.find_spec(package)  # without importing it, which takes seconds
        if spec is None or spec.origin is None:
            continue
        source = Path(spec.origin).parent / place
        if source.is_file():
            shutil.copyfile(source, folder / name)
            copied += 1
    if not copied:
        raise InputError("The sample photos are missing: install them with pip install -e '.[demo]'.")
    return copied


def show(output: Path) -> None:
    """Print the captions of a run's table."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("photo", no_wrap=True)
    table.add_column("caption")
    table.add_column("score", justify="right")
    rows = [row for part in sorted(output.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]
    for row in sorted(rows, key=lambda row: row["image_id"]):
        caption = row["caption"] if row["status"] == "ok" else f"({row['error_class']}: {row['error_message']})"
        score = "" if row["score"] is None else f"{row['score']:.2f}"
        table.add_row(row["image_id"], caption, score)
    Console(file=sys.stdout).print(table)


def main(model: str | None = None) -> int:
    """Caption the sample photos with the bundled captioner, or `model`; returns an exit code."""
    from jobs.__main__ import app

    shutil.rmtree(FOLDER, ignore_errors=True)
    photos = FOLDER / "photos"
    print(f"Captioning {copy_photos(photos)} photos that come with scikit-image, scikit-learn and matplotlib:")
    commands = [
        ["caption", str(photos), "-o", str(FOLDER), *(["--model", model] if model else [])],
        ["report", str(FOLDER), "-o", str(FOLDER / "report.html")],
    ]
    for command in commands:
        print(f"\n$ python -m jobs {' '.join(command)}", flush=True)
        code = get_command(app).main(command, prog_name="python -m jobs", standalone_mode=False)
        if code:
            return int(code)
        if command[0] == "caption":
            show(FOLDER)
    print(
        f"\nThe table is {FOLDER}/part-*.parquet; open {FOLDER}/report.html in a browser."
        "\nNow caption your own photos:"
        "\n\n    .venv/bin/python -m jobs caption YOUR_FOLDER -o captions"
        "\n    .venv/bin/python -m jobs report captions\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
