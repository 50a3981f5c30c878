"""Small archives to caption: distinct photos, and the odd files of real archives."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


def picture(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture that differs from that of any other number."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_photos(folder: Path, count: int, *, first: int = 0) -> Path:
    """`count` JPEGs in two folders."""
    for number in range(first, first + count):
        path = folder / f"{number % 2}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(number), "JPEG"))
    return folder


def write_odd_files(folder: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Nine odd files; the good ones with their (width, height), the bad ones with their error class."""
    folder.mkdir(parents=True, exist_ok=True)
    photo = picture(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    deep = Image.fromarray(np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16))
    good = {
        "cmyk.jpg": encode(photo.convert("CMYK"), "JPEG"),
        "deep.png": encode(deep, "PNG"),
        "turned.jpg": encode(photo, "JPEG", exif=exif),
        "moving.gif": encode(photo, "GIF", save_all=True, append_images=[picture(2), picture(3)]),
        "photo.webp": encode(photo, "WEBP"),
    }
    jpeg = encode(picture(4, (200, 150)), "JPEG")
    bad = {
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"This is no picture, whatever it is called.\n" * 20, "not_an_image"),
        "huge.png": (png_header(40_000, 40_000), "too_large"),
    }
    for name, data in good.items():
        (folder / name).write_bytes(data)
    for name, (data, _) in bad.items():
        (folder / name).write_bytes(data)
    sizes = {name: (30, 40) if name == "turned.jpg" else (40, 30) for name in good}
    return sizes, {name: error_class for name, (_, error_class) in bad.items()}


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG whose header claims this many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def read_rows(output: Path) -> dict[str, dict[str, Any]]:
    """The table's rows by image id; ids must be unique."""
    rows = [row for part in sorted(output.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]
    found = {row["image_id"]: row for row in rows}
    assert len(found) == len(rows), "an image has more than one row"
    return found


def assert_same_table(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> None:
    """Assert the same rows, with all columns equal and scores within 1e-4."""
    assert one.keys() == other.keys()
    for image_id, row in one.items():
        assert _without_scores(row) == _without_scores(other[image_id])
        assert np.allclose(_scores(row), _scores(other[image_id]), atol=1e-4)


def _without_scores(row: dict[str, Any]) -> dict[str, Any]:
    captions = [alternative["caption"] for alternative in row["alternatives"]]
    return {key: value for key, value in row.items() if key != "score"} | {"alternatives": captions}


def _scores(row: dict[str, Any]) -> list[float]:
    return [s for s in (row["score"], *(entry["score"] for entry in row["alternatives"])) if s is not None]
