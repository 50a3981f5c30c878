"""A toy world for models to learn: coloured shapes, their positions, and one sentence that describes them.

    scene    = object | object relation object
    object   = "a" colour shape
    relation = "left of" | "above"

A picture has one right caption. The seed and the split decide every picture, and no picture of
one split is in another.
"""

import io
import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from captioning.data.shards import ShardInfo, ShardSet
from captioning.storage import Location

COLOURS = {"red": (225, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 235), "white": (240, 240, 240)}
SHAPES = ("disc", "ring", "bar")
RELATIONS = ("left of", "above")
SIZE = 48
_SHARD_SIZE = 1000


@dataclass(frozen=True)
class Thing:
    """One coloured shape: its centre and its radius, in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one thing, or two and their spatial relation."""

    things: tuple[Thing, ...]
    relation: str | None

    @property
    def caption(self) -> str:
        return f" {self.relation} ".join(map(str, self.things))


def make_scene(generator: np.random.Generator) -> Scene:
    """A scene drawn at random; one in ten shows a single thing."""
    if generator.random() < 0.1:
        x, y = generator.uniform(14, SIZE - 14, 2)
        return Scene((_thing(generator, x, y),), None)
    relation = RELATIONS[generator.integers(2)]
    first, second = generator.uniform(9, 14), generator.uniform(SIZE - 14, SIZE - 9)
    # In the other direction the two are roughly level, so that only one relation fits.
    across = generator.uniform(18, SIZE - 18) + generator.uniform(-4, 4, 2)
    places = [(first, across[0]), (second, across[1])]
    if relation == "above":
        places = [(y, x) for x, y in places]
    return Scene(tuple(_thing(generator, x, y) for x, y in places), relation)


def draw(scene: Scene, generator: np.random.Generator) -> Image.Image:
    """The picture of `scene`, on a dark and noisy background."""
    noise = generator.integers(0, 50, (SIZE, SIZE, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        x, y, r, fill = thing.x, thing.y, thing.radius, COLOURS[thing.colour]
        if thing.shape == "disc":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif thing.shape == "ring":
            pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=2)
        else:
            pen.rectangle((x - r, y - 2, x + r, y + 2), fill=fill)
    return image


def write_world(folder: Path, counts: dict[str, int], *, seed: int = 0) -> ShardSet:
    """Training shards with `counts` pictures per split, one caption each."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {split: tuple(_write_split(folder, split, count, seed)) for split, count in counts.items()}
    shards = ShardSet(Location.parse(str(folder)), "toy-world", f"toy-world-{seed}-{counts}", splits)
    (folder / "shards.json").write_text(json.dumps(shards.to_json()))
    return shards


def _thing(generator: np.random.Generator, x: float, y: float) -> Thing:
    colour, shape = list(COLOURS)[generator.integers(len(COLOURS))], SHAPES[generator.integers(len(SHAPES))]
    return Thing(colour, shape, float(x), float(y), float(generator.uniform(6, 8)))


def _write_split(folder: Path, split: str, count: int, seed: int) -> list[ShardInfo]:
    generator = np.random.default_rng([seed, zlib.crc32(split.encode())])
    shards = []
    for number, start in enumerate(range(0, count, _SHARD_SIZE)):
        path = folder / f"{split}-{number:06d}.tar"
        samples = min(_SHARD_SIZE, count - start)
        with tarfile.open(path, "w") as tar:
            for at in range(start, start + samples):
                key = f"{split}{at:06d}"
                scene = make_scene(generator)
                picture = io.BytesIO()
                draw(scene, generator).save(picture, "JPEG", quality=95, subsampling=0)
                about = {"image_id": key, "captions": [scene.caption], "split": split}
                _add(tar, f"{key}.jpg", picture.getvalue())
                _add(tar, f"{key}.json", json.dumps(about).encode())
        shards.append(ShardInfo(path.name, samples, samples, path.stat().st_size))
    return shards


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
