"""Captions without their images, for vocabularies and language models: a line a caption, or a table."""

from captioning.data.annotations import find_layout, read_annotations
from captioning.data.problems import Problems
from captioning.errors import InputError, StorageError
from captioning.storage import Location


def read_captions(place: Location) -> list[str]:
    """All captions of a file, in its order: every line of a `.txt`, else what `prepare` would read in it.

    Raises `InputError` for a file that cannot be read, or that holds no captions.
    """
    try:
        data = place.read_bytes()
    except StorageError as error:
        raise InputError(f"The captions in {place} cannot be read: {error.message}") from error
    if place.name.lower().endswith(".txt"):
        return [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    dataset = {"table": "csv", "coco": "coco", "karpathy": "flickr30k"}[find_layout(data, place.name)]
    annotations = read_annotations(dataset, data, Problems(), where=place.name)
    return [caption for annotation in annotations for caption in annotation.captions]
