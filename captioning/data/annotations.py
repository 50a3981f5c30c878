"""Reads a dataset's captions from its annotation file, one record per image.

The layout is recognised from the contents: Karpathy's JSON, COCO's annotations, or a table delimited by `|`, commas
or tabs. Problems in the file are counted and not fatal, unless nothing can be used.
"""

import re

from captioning.data.annotation_json import read_coco, read_karpathy
from captioning.data.annotation_record import Annotation
from captioning.data.annotation_table import read_table
from captioning.data.problems import Problems
from captioning.errors import InputError

__all__ = ["DATASETS", "Annotation", "read_annotations", "read_splits"]

#: The layouts that each dataset's captions may have.
DATASETS: dict[str, tuple[str, ...]] = {
    "flickr30k": ("table", "karpathy"),
    "coco": ("coco", "karpathy"),
    "csv": ("table",),
}

_LAYOUTS = {
    "table": "a table of captions (image|number|caption or image,caption)",
    "karpathy": "Karpathy's JSON (images with sentences)",
    "coco": "COCO's annotations (JSON with images and annotations)",
}


def read_annotations(dataset: str, data: bytes, problems: Problems, *, where: str) -> list[Annotation]:
    """The captions in the annotation file `data`, one record an image, in the file's order.

    `where` is the file's name, for messages. Raises `InputError` for an unknown dataset, a layout
    that the dataset does not come in, or a file in which no image has a caption.
    """
    if dataset not in DATASETS:
        raise InputError(f"Unknown dataset {dataset!r}. Known datasets: {', '.join(DATASETS)}.")
    layout = find_layout(data, where)
    if layout not in DATASETS[dataset]:
        fitting = [name for name, layouts in DATASETS.items() if layout in layouts]
        raise InputError(
            f"{where} is {_LAYOUTS[layout]}, and {dataset} is read from "
            f"{' or '.join(_LAYOUTS[name] for name in DATASETS[dataset])}. "
            f"For this file use: prepare {' or '.join(fitting)}."
        )
    readers = {"table": read_table, "karpathy": read_karpathy, "coco": read_coco}
    annotations = readers[layout](data, problems, where=where)
    usable = [annotation for annotation in annotations if annotation.captions]
    problems.add_all("images without a usable caption, skipped", (a.image for a in annotations if not a.captions))
    if not usable:
        details = "".join(f"\n  {line}" for line in problems.lines())
        raise InputError(f"{where} contains no usable caption. It was read as {_LAYOUTS[layout]}.{details}")
    return usable


def read_splits(data: bytes, *, where: str) -> dict[str, str]:
    """Split by image name, from Karpathy's JSON. Raises `InputError` for any other file."""
    if find_layout(data, where) != "karpathy":
        raise InputError(
            f"--splits takes Karpathy's JSON ({{'images': [{{'filename', 'split', 'sentences'}}]}}), "
            f"such as dataset_flickr30k.json; {where} is something else."
        )
    # Only the splits are used, so problems with the captions do not matter.
    annotations = read_karpathy(data, Problems(), where=where)
    splits = {annotation.image: annotation.split for annotation in annotations if annotation.split}
    if not splits:
        raise InputError(f"{where} names no split: none of its images has a 'split'.")
    return splits


def find_layout(data: bytes, where: str) -> str:
    """`karpathy`, `coco` or `table`, from the first bytes and, for JSON, its keys."""
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise InputError(f"{where} is empty. Pass the file that contains the captions.")
    if b"\0" in start[:1000]:
        raise InputError(f"{where} is not UTF-8 text. Convert it to UTF-8 text or JSON.")
    if start[:1] not in (b"{", b"["):
        return "table"
    # The readers parse the file; its keys suffice to tell the two JSON layouts apart.
    if re.search(rb'"annotations"\s*:', data):
        return "coco"
    if re.search(rb'"(?:sentences|split)"\s*:', data):
        return "karpathy"
    raise InputError(
        f"{where} is JSON, but neither {_LAYOUTS['karpathy']} nor {_LAYOUTS['coco']}. Use one of these, or a table."
    )
