"""Captions without their images, for vocabularies and language models: a line a caption, or a table."""

import re

from captioning.data.annotation_table import CAPTION_COLUMNS, IMAGE_COLUMNS
from captioning.data.annotations import find_layout, read_annotations
from captioning.data.problems import Problems
from captioning.errors import InputError, StorageError
from captioning.storage import Location


def read_captions(place: Location) -> list[str]:
    """All captions of a file, in its order: every line of a `.txt`, else what `prepare` would read in it.

    A `.txt` whose first line names columns of images and of captions is a table, as Flickr8k's is.

    Raises `InputError` for a file that cannot be read, or that holds no captions.
    """
    try:
        data = place.read_bytes()
    except StorageError as error:
        raise InputError(f"The captions in {place} cannot be read: {error.message}") from error
    if place.name.lower().endswith(".txt") and not _is_table(data):
        return [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    dataset = {"table": "csv", "coco": "coco", "karpathy": "flickr30k"}[find_layout(data, place.name)]
    annotations = read_annotations(dataset, data, Problems(), where=place.name)
    return [caption for annotation in annotations for caption in annotation.captions]


def _is_table(data: bytes) -> bool:
    first = data.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].decode("utf-8", "replace")
    names = {name.strip(' \r"').lower() for name in re.split(r"[|,\t]", first)}
    return not names.isdisjoint(IMAGE_COLUMNS) and not names.isdisjoint(CAPTION_COLUMNS)
