"""A zoo of bad images: twelve formats, each damaged in the ways that files get damaged, and bombs.

for name, data in zoo(each=170): …      always the same ones
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from tests.jobs.archive import encode, picture

Mutation = Callable[[bytes, random.Random], bytes]


def formats() -> dict[str, bytes]:
    """A valid image of each format, by file name."""
    photo, others = picture(1, (61, 47)), [picture(2, (61, 47)), picture(3, (61, 47))]
    deep = Image.fromarray(np.linspace(0, 65535, 61 * 47).reshape(47, 61).astype(np.uint16))
    see_through = photo.copy()
    see_through.putalpha(128)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a photo " * 20
    return {
        "photo.jpg": encode(photo, "JPEG", exif=exif, quality=90),
        "progressive.jpeg": encode(photo, "JPEG", progressive=True, quality=90),
        "pair.jpe": encode(photo, "MPO", save_all=True, append_images=others),
        "alpha.png": encode(see_through, "PNG"),
        "deep.png": encode(deep, "PNG"),
        "photo.webp": encode(photo, "WEBP", exif=exif),
        "moving.gif": encode(photo, "GIF", save_all=True, append_images=others),
        "photo.bmp": encode(photo, "BMP"),
        "photo.tif": encode(photo, "TIFF", compression="tiff_lzw"),
        "photo.jp2": encode(photo, "JPEG2000"),
        "photo.avif": encode(photo, "AVIF"),
        "photo.ppm": encode(photo, "PPM"),
    }


def zoo(each: int) -> Iterator[tuple[str, bytes]]:
    """`each` mutations of every format, and the bombs: (file name, bytes)."""
    for kind, (name, data) in enumerate(formats().items()):
        stem, _, extension = name.rpartition(".")
        for number in range(each):
            chance = random.Random(1000 * kind + number)
            mutation = MUTATIONS[number % len(MUTATIONS)]
            yield f"{stem}-{number:04d}-{mutation.__name__}.{extension}", mutation(data, chance)
    yield from bombs()


def flip_bytes(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def flip_header(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        damaged[chance.randrange(min(64, len(damaged)))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def swap_blocks(data: bytes, chance: random.Random) -> bytes:
    size = chance.randint(1, max(1, len(data) // 4))
    a = chance.randrange(len(data) - 2 * size + 1)
    b = chance.randrange(a + size, len(data) - size + 1)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def zero_block(data: bytes, chance: random.Random) -> bytes:
    a = chance.randrange(len(data))
    size = chance.randint(1, len(data) - a)
    return data[:a] + bytes(size) + data[a + size :]


def leave_out(data: bytes, chance: random.Random) -> bytes:
    a = chance.randrange(len(data))
    return data[:a] + data[a + chance.randint(1, 64) :]


def repeat_block(data: bytes, chance: random.Random) -> bytes:
    a = chance.randrange(len(data))
    size = chance.randint(1, 256)
    return data[: a + size] + data[a : a + size] * chance.randint(1, 20) + data[a + size :]


def append_rubbish(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.randint(1, 4000))


def huge_numbers(data: bytes, chance: random.Random) -> bytes:
    """Make two- or four-byte fields near the beginning very large: sizes, counts, offsets."""
    damaged = bytearray(data)
    width = chance.choice([2, 4])
    at = chance.randrange(min(len(data) - width, 400))
    damaged[at : at + width] = b"\xff" * width if chance.random() < 0.5 else b"\x7f" + b"\xff" * (width - 1)
    return bytes(damaged)


def lie_about_size(data: bytes, chance: random.Random) -> bytes:
    """Change the image's width and height, wherever they are stored."""
    damaged = data
    for pattern in (">HH", "<HH", ">II", "<II"):
        for size in ((47, 61), (61, 47), (60, 46)):
            told = [chance.choice([0, 1, 20, 300, 9_000, 65_535]) for _ in size]
            damaged = damaged.replace(struct.pack(pattern, *size), struct.pack(pattern, *told))
    return damaged.replace(b"61 47", b"%d %d" % (chance.randrange(70), chance.randrange(9_000)))


def mix(data: bytes, chance: random.Random) -> bytes:
    for mutation in chance.sample([flip_bytes, zero_block, leave_out, huge_numbers, repeat_block], 3):
        data = mutation(data, chance) or b"\0"
        data = data.ljust(500, b"\0")
    return data


MUTATIONS: list[Mutation] = [flip_bytes, flip_header, cut, swap_blocks, zero_block, leave_out]
MUTATIONS += [repeat_block, append_rubbish, huge_numbers, lie_about_size, mix]


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that claim to be very large, very many, or endless."""
    yield from _png_bombs()
    yield from _jpeg_bombs()
    yield from _tiff_bombs()
    gif = formats()["moving.gif"]
    header, frame = gif[: 13 + 3 * 256], gif[13 + 3 * 256 : -1]
    yield "bomb-frames.gif", header + frame * 400 + b";"
    yield "bomb-screen.gif", gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:]
    yield "bomb-frame.gif", gif.replace(b"," + struct.pack("<HHHH", 0, 0, 61, 47), b"," + b"\xff\x7f" * 4)
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (16_383).to_bytes(3, "little") * 2
    yield "bomb-canvas.webp", b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
    for side in (9_400, 30_000, 2**31 - 1):
        head = struct.pack("<IIiiHHIIiiII", 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        yield f"bomb-{side}.bmp", b"BM" + struct.pack("<IHH", 0, 0, 0) + head
        yield f"bomb-{side}.ppm", b"P6 %d %d 255\n" % (side, side)
    yield "bomb-runs.bmp", _bmp_runs()


def _png_bombs() -> Iterator[tuple[str, bytes]]:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    whole = encode(picture(4, (61, 47)), "PNG")
    head, rest = whole[:33], whole[33:]
    zeros = zlib.compress(bytes(64 << 20))
    for name, data in (
        ("ztxt", chunk(b"zTXt", b"Comment\0\0" + zeros)),
        ("itxt", chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros)),
        ("iccp", chunk(b"iCCP", b"profile\0\0" + zeros)),
        ("text", chunk(b"tEXt", b"Comment\0" + b"x" * 900_000) * 80),
        ("many", chunk(b"tEXt", b"k\0v") * 50_000),
        ("exif", chunk(b"eXIf", b"II*\0" + b"\x08\0\0\0" + b"\xff\xff" + b"\x12\x01\3\0\1\0\0\0\6\0\0\0" * 60_000)),
        ("frames", chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    ):
        yield f"bomb-{name}.png", head + data + rest
    for width, height in ((40_000, 40_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 0)):
        size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        yield f"bomb-{width}x{height}.png", whole[:8] + size + chunk(b"IDAT", zeros) + chunk(b"IEND", b"")
    yield "bomb-data.png", head + chunk(b"IDAT", zeros) + chunk(b"IEND", b"")


def _jpeg_bombs() -> Iterator[tuple[str, bytes]]:
    whole = encode(picture(5, (61, 47)), "JPEG")

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    full = b"x" * 65_000
    for name, data in (
        ("exif", segment(0xE1, b"Exif\0\0II*\0" + full) * 200),
        ("xmp", segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + full) * 200),
        ("icc", b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 255]) + full) for n in range(255))),
        ("comment", segment(0xFE, full) * 200),
        ("empty", segment(0xFE, b"") * 200_000),
        ("dht", segment(0xC4, b"\x00" + b"\xff" * 16 + bytes(255)) * 50),
        ("dqt", segment(0xDB, b"\x1f" + bytes(128)) * 500),
        ("exif-loop", segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0")),
        ("mpf", segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0\4\0\1\0\0\0\xff\xff\xff\x7f\0\0\0\0")),
        ("filler", b"\xff" * 5_000_000),
    ):
        yield f"bomb-{name}.jpg", whole[:2] + data + whole[2:]
    at = whole.index(b"\xff\xc0")
    for name, width, height, components in (
        ("sof", 65_535, 65_535, 3),
        ("wide", 65_500, 1, 3),
        ("none", 0, 0, 3),
        ("parts", 61, 47, 200),
    ):
        frame = struct.pack(">HHB", height, width, components)
        yield f"bomb-{name}.jpg", whole[: at + 5] + frame + whole[at + 10 :]
    scan = whole[whole.index(b"\xff\xda") : -2]
    progressive = encode(picture(5, (61, 47)), "JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield "bomb-scans.jpg", progressive[:-2] + last * 3_000 + b"\xff\xd9"
    yield "bomb-baseline-scans.jpg", whole[:-2] + scan * 300 + b"\xff\xd9"


def _tiff_bombs() -> Iterator[tuple[str, bytes]]:
    def directory(entries: list[tuple[int, int, int, int]], following: int) -> bytes:
        fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        return struct.pack("<H", len(entries)) + fields + struct.pack("<I", following)

    usual = [(256, 4, 1, 61), (257, 4, 1, 47), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    strips = [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 47), (279, 4, 1, 61 * 47)]
    for name, entries, following in (
        ("loop", usual + strips, 8),
        ("sub-loop", [*usual, *strips, (330, 4, 1, 8)], 0),
        ("exif-loop", [*usual, *strips, (34665, 4, 1, 8)], 0),
        ("count", [*usual, (273, 4, 2**31, 8), *strips[1:]], 0),
        ("huge-count", [*usual, *strips, (270, 2, 2**32 - 1, 0)], 0),
        ("size", [(256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1), *usual[2:], *strips], 0),
        ("rows", [*usual, *strips[:2], (278, 4, 1, 0), strips[3]], 0),
        ("tiles", [*usual, (322, 4, 1, 1), (323, 4, 1, 1), (324, 4, 1, 8), (325, 4, 1, 2**31 - 1)], 0),
        ("many-samples", [*usual, *strips[:1], (277, 3, 1, 65_535), *strips[2:]], 0),
    ):
        yield f"bomb-{name}.tif", b"II*\0\x08\0\0\0" + directory(entries, following) + bytes(61 * 47)
    entry = struct.pack("<HHII", 270, 2, 4, 0)
    fields = b"".join(struct.pack("<HHII", *fact) for fact in usual + strips)
    yield "bomb-entries.tif", b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + fields + entry * 59_991 + bytes(4)
    chain = b"".join(struct.pack("<HI", 0, 8 + 6 * (n + 1)) for n in range(100_000))
    yield "bomb-chain.tif", b"II*\0\x08\0\0\0" + chain


def _bmp_runs() -> bytes:
    """A run-length BMP that claims to be large and has almost no data."""
    head = struct.pack("<IiiHHIIiiII", 40, 9_000, 9_000, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + head + bytes(1024) + b"\xff\1" * 200 + b"\0\1"


def readable(data: bytes) -> tuple[int, int] | None:
    """The size of the image as decoded by Pillow itself, with the supported formats; or None."""
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
    Image.init()
    try:
        with Image.open(io.BytesIO(data), formats=kinds) as image:
            image.load()
            if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
                image.convert("RGB")
            return image.size
    except Exception:
        return None
