"""A small caption run as `caption` would write it, made without a model and without Ray."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from captioning.run.growth import grow
from captioning.run.index import Index, write_segment
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.run.sources import Entry, open_sources
from captioning.run.staging import fold, write_staged
from captioning.run.table import Row
from captioning.storage import Location

EVIL_NAME = "<img src=x onerror=alert(1)>&\"'.jpg"
EVIL_CAPTION = "a <script>alert('caption')</script> & a \"dog\""


@dataclass(frozen=True)
class SmallRun:
    """A run, its images and its captions."""

    output: Path
    archive: Path
    captions: dict[str, str]

    @property
    def location(self) -> Location:
        return Location.parse(str(self.output))

    @property
    def layout(self) -> RunLayout:
        return RunLayout(self.location)


def jpeg(number: int, width: int = 80, height: int = 60) -> bytes:
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def dogs(number: int) -> str:
    return f"a photo of {number % 5} dogs in a park"


def make_run(
    folder: Path,
    names: list[str],
    *,
    broken: tuple[str, ...] = (),
    shard_size: int = 4,
    tar: bool = False,
    say: Callable[[int], str] = dogs,
) -> SmallRun:
    """A folded run over images of these names (files, or members of one tar), all captioned except the broken ones."""
    archive = folder / "photos"
    archive.mkdir()
    contents = {name: b"" if name in broken else jpeg(number) for number, name in enumerate(names)}
    if tar:
        with tarfile.open(archive / "all.tar", "w") as writer:
            for name, data in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                writer.addfile(info, io.BytesIO(data))
    else:
        for name, data in contents.items():
            (archive / name).write_bytes(data)
    given = str(archive / "all.tar" if tar else archive)
    output = folder / "captions"
    layout = RunLayout(Location.parse(str(output)))
    record = RunRecord(
        inputs=(given,),
        archive=(given,),
        shard_size=shard_size,
        settings={"decoding": {"beam_size": 3}, "storage": {}},
        fingerprint_parts={"weights": "abc"},
    )
    record.create(layout)
    index = write_segment(layout, open_sources([given]), shard_size=shard_size).commit()
    captions: dict[str, str] = {}
    for shard in index.shards():
        rows = [_row(entry, number, captions, say) for number, entry in enumerate(index.rows(shard), shard.start)]
        write_staged(layout, shard, rows)
    fold(layout, index)
    return SmallRun(output, archive, captions)


def grow_run(run: SmallRun, names: Sequence[str]) -> None:
    """Add images of these names, captioned and folded."""
    for number, name in enumerate(names, start=len(run.captions)):
        (run.archive / name).write_bytes(jpeg(number))
    before = Index.load(run.layout)
    found = grow(before, open_sources([str(run.archive)]), shard_size=before.segments[0].shard_size)
    assert found.pending is not None
    index = found.pending.commit()
    for shard in index.shards()[before.shards_total :]:
        rows = [_row(entry, number, run.captions) for number, entry in enumerate(index.rows(shard), shard.start)]
        write_staged(run.layout, shard, rows)
    fold(run.layout, index)


def unfold(run: SmallRun, done: int) -> None:
    """Make the run unfinished: `done` shards staged, nothing folded."""
    index = Index.load(run.layout)
    for part in run.layout.parts():
        run.layout.part(part).delete()
    for shard in index.shards()[:done]:
        rows = [_row(entry, number, {}) for number, entry in enumerate(index.rows(shard), shard.start)]
        write_staged(run.layout, shard, rows)


def write_log(run: SmallRun, lines: list[dict[str, object]]) -> None:
    run.layout.events.write_text("".join(json.dumps(line) + "\n" for line in lines) + "not json\n")


def _row(entry: Entry, number: int, captions: dict[str, str], say: Callable[[int], str] = dogs) -> Row:
    if entry.size_bytes == 0:
        return Row.failed(entry, "empty", "The file is <b>empty</b> (0 bytes).", model="toy-0123")
    caption = EVIL_CAPTION if "<" in entry.image_id else say(number)
    captions[entry.image_id] = caption
    score = -0.5 - number / 50
    return Row(
        image_id=entry.image_id,
        uri=entry.uri,
        caption=caption,
        score=score,
        num_tokens=8,
        alternatives=((caption, score), ("another <i>caption</i>", score - 1)),
        width=80,
        height=60,
        size_bytes=entry.size_bytes,
        model="toy-0123",
    )
