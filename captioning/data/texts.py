"""Captions without their images, for vocabularies and language models: a line a caption, or a table."""

import re

from captioning.data.annotation_table import CAPTION_COLUMNS, IMAGE_COLUMNS
from captioning.data.annotations import find_layout, read_annotations
from captioning.data.images import IMAGE_EXTENSIONS
from captioning.data.problems import Problems
from captioning.errors import InputError, StorageError
from captioning.storage import Location


def read_captions(place: Location) -> list[str]:
    """The captions of a file, in its order: every line of a `.txt`, else what `prepare` would read in it.

    A `.txt` whose first line names columns of images and of captions, or begins with an image's name, is a table. Where
    the file says which split an image is in, those of `train` are taken: on others a captioner is judged.

    Raises `InputError` for a file that cannot be read, or that holds no captions to learn from.
    """
    try:
        data = place.read_bytes()
    except StorageError as error:
        raise InputError(f"The captions in {place} cannot be read: {error.message}") from error
    if place.name.lower().endswith(".txt") and not _is_table(data):
        return [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    dataset = {"table": "csv", "coco": "coco", "karpathy": "flickr30k"}[find_layout(data, place.name)]
    annotations = read_annotations(dataset, data, Problems(), where=place.name)
    ours = [annotation for annotation in annotations if annotation.split in (None, "train")]
    if annotations and not ours:
        raise InputError(f"The captions in {place} are all of other splits than train: there are none to learn from.")
    return [caption for annotation in ours for caption in annotation.captions]


def _is_table(data: bytes) -> bool:
    first = data.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].decode("utf-8", "replace")
    names = [name.strip(' \r"').lower() for name in re.split(r"[|,\t]", first)]
    if len(names) > 1 and re.sub(r"#\d+$", "", names[0]).endswith(tuple(IMAGE_EXTENSIONS)):
        return True
    return not set(names).isdisjoint(IMAGE_COLUMNS) and not set(names).isdisjoint(CAPTION_COLUMNS)
