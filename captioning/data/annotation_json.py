"""Reads captions from JSON: Karpathy's layout (splits with sentences) and COCO's own annotations.

Malformed records are counted and skipped.
"""

import json
from typing import Any

from captioning.data.annotation_record import Annotation, Collector
from captioning.data.problems import Problems
from captioning.errors import InputError


def read_karpathy(data: bytes, problems: Problems, *, where: str) -> list[Annotation]:
    """Captions from `{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}`.

    COCO's `restval` (validation images that Karpathy adds to the training ones) becomes `train`.
    """
    collector = Collector(problems)
    for number, image in enumerate(_list(_load(data, where), "images", where)):
        place = f"{where}: images[{number}]"
        name = _text(image, "filename")
        if not name:
            problems.add("images without a file name, skipped", place)
            continue
        folder = _text(image, "filepath")
        path = f"{folder.strip('/')}/{name}" if folder.strip("/") else name
        if collector.has(path):
            problems.add("images listed twice, their captions merged", place)
        split = _text(image, "split") or None
        cocoid = image.get("cocoid")
        collector.add_image(path, image_id=None if cocoid is None else str(cocoid), split=_split_name(split))
        sentences = image.get("sentences")
        for index, sentence in enumerate(sentences if isinstance(sentences, list) else []):
            collector.add_caption(path, _sentence(sentence), f"{place} sentences[{index}]")
    return collector.annotations()


def read_coco(data: bytes, problems: Problems, *, where: str) -> list[Annotation]:
    """Captions from `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`."""
    contents = _load(data, where)
    collector = Collector(problems)
    paths: dict[Any, str] = {}
    for number, image in enumerate(_list(contents, "images", where)):
        path = _text(image, "file_name")
        if not path or not isinstance(image.get("id"), (int, str)):
            problems.add("images without an id or a file name, skipped", f"{where}: images[{number}]")
            continue
        paths[image["id"]] = path
        collector.add_image(path, image_id=str(image["id"]))
    for number, annotation in enumerate(_list(contents, "annotations", where)):
        place = f"{where}: annotations[{number}]"
        image_id = annotation.get("image_id")
        known = paths.get(image_id) if isinstance(image_id, (int, str)) else None
        if known is None:
            problems.add("captions of images that are not listed, skipped", place)
            continue
        caption = annotation.get("caption")
        collector.add_caption(known, caption if isinstance(caption, str) else "", place)
    return collector.annotations()


def _load(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}. Was it downloaded completely?") from error


def _list(contents: Any, key: str, where: str) -> list[dict[str, Any]]:
    items = contents.get(key) if isinstance(contents, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError(
            f"{where} has no list of objects {key!r} at its top level. Is it the dataset's annotation file?"
        )
    return items


def _text(item: dict[str, Any], key: str) -> str:
    value = item.get(key)
    return value.strip() if isinstance(value, str) else ""


def _split_name(split: str | None) -> str | None:
    return "train" if split == "restval" else split


def _sentence(sentence: Any) -> str:
    """A sentence's `raw` text, or its tokens joined if that is missing."""
    if isinstance(sentence, dict):
        raw, tokens = sentence.get("raw"), sentence.get("tokens")
        if isinstance(raw, str):
            return raw
        if isinstance(tokens, list):
            return " ".join(str(token) for token in tokens)
    return ""
