"""Reads captions without images, for vocabularies and language models."""

import re

from captioning.data.annotation_table import CAPTION_COLUMNS, IMAGE_COLUMNS
from captioning.data.annotations import find_layout, read_annotations
from captioning.data.images import IMAGE_EXTENSIONS
from captioning.data.problems import Problems
from captioning.errors import InputError, StorageError
from captioning.storage import Location


def read_captions(place: Location) -> list[str]:
    """The captions of a file, in its order: the lines of a `.txt`, else those of an annotation file.

    A `.txt` file is a table if its first line names an image and a caption column or starts with an image's name. If
    the file assigns splits, only the captions of `train` are returned, since the others are for evaluation.

    Raises `InputError` for a file that cannot be read or that has no captions of `train`.
    """
    try:
        data = place.read_bytes()
    except StorageError as error:
        raise InputError(f"The captions in {place} cannot be read: {error.message}") from error
    if place.name.lower().endswith(".txt") and not _is_table(data):
        return [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    dataset = {"table": "csv", "coco": "coco", "karpathy": "flickr30k"}[find_layout(data, place.name)]
    annotations = read_annotations(dataset, data, Problems(), where=place.name)
    train = [annotation for annotation in annotations if annotation.split in (None, "train")]
    if annotations and not train:
        raise InputError(f"All captions in {place} belong to splits other than train: there are none to learn from.")
    return [caption for annotation in train for caption in annotation.captions]


def _is_table(data: bytes) -> bool:
    first = data.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].decode("utf-8", "replace")
    names = [name.strip(' \r"').lower() for name in re.split(r"[|,\t]", first)]
    if len(names) > 1 and re.sub(r"#\d+$", "", names[0]).endswith(tuple(IMAGE_EXTENSIONS)):
        return True
    return not set(names).isdisjoint(IMAGE_COLUMNS) and not set(names).isdisjoint(CAPTION_COLUMNS)
