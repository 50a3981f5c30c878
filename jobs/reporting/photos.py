"""Thumbnails for reports: fetches a row's image again, decodes it as the run did, and scales it down.

A photo that cannot be fetched gives a thumbnail with the reason instead.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from PIL import Image

from captioning.data.images import MOST_PIXELS, open_rgb
from captioning.errors import CaptioningError
from captioning.run.fetch import fetch
from captioning.run.index import Index
from captioning.run.layout import RunLayout
from captioning.run.sources import Entry
from captioning.storage import StorageSettings

#: Pixels of a thumbnail's longer side, for about 150 points on a high-resolution screen.
_SIDE = 320
_QUALITY = 72
_THREADS = 8


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG as a `data:` URI with its size, or (`data_uri` empty) the `reason` why there is none."""

    data_uri: str
    width: int
    height: int
    reason: str = ""


class ImageRow(Protocol):
    """The fields of a row that locate its image."""

    @property
    def image_id(self) -> str: ...
    @property
    def uri(self) -> str: ...
    @property
    def size_bytes(self) -> int | None: ...


def thumbnails(layout: RunLayout, rows: Sequence[ImageRow], storage: StorageSettings) -> dict[str, Thumbnail]:
    """A `Thumbnail` for the image of each row, by its `image_id`. Never raises for one image."""
    by_id = {row.image_id: row for row in rows}
    entries = _entries(layout, by_id)
    with ThreadPoolExecutor(_THREADS) as pool:
        made = pool.map(partial(_thumbnail, storage=storage), entries)
        return {entry.image_id: thumbnail for entry, thumbnail in zip(entries, made, strict=True)}


def _entries(layout: RunLayout, rows: Mapping[str, ImageRow]) -> list[Entry]:
    """Where the rows' images are. Only images in tars and tables need the index, for their position."""
    plain = [row for row in rows.values() if "#" not in row.uri]
    entries = [Entry(image_id=row.image_id, uri=row.uri, size_bytes=row.size_bytes) for row in plain]
    wanted = rows.keys() - {row.image_id for row in plain}
    return entries + (list(_from_index(layout, wanted)) if wanted else [])


def _from_index(layout: RunLayout, wanted: set[str]) -> Iterable[Entry]:
    missing = set(wanted)
    for batch in Index.load(layout).batches():
        if not missing:
            return
        for entry in batch:
            if entry.image_id in missing:
                missing.remove(entry.image_id)
                yield entry


def _thumbnail(entry: Entry, storage: StorageSettings) -> Thumbnail:
    try:
        image = open_rgb(fetch(entry, storage), max_pixels=MOST_PIXELS)
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    except CaptioningError as error:
        return Thumbnail("", 0, 0, str(error))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}", image.width, image.height)
