"""Plans training shards: matches captions with image files, assigns splits, and cuts the samples into shards.

The plan depends on names and sizes alone, is made before any image is opened, and is deterministic.
"""

import hashlib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from captioning.data.annotation_record import Annotation
from captioning.data.problems import Problems
from captioning.errors import InputError
from captioning.storage import FileInfo

#: A shard is held in memory while it is written.
MAX_SHARD_BYTES = 128 * 2**20

_SPLIT_ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class PlannedSample:
    """A sample to be written. `image` is the file's path below the images' folder, `size` in bytes."""

    key: str
    image_id: str
    image: str
    size: int
    captions: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written: its file name and its samples in order."""

    name: str
    samples: tuple[PlannedSample, ...]


def plan_samples(
    annotations: Sequence[Annotation],
    files: Iterable[FileInfo],
    splits: Mapping[str, str] | None,
    problems: Problems,
    *,
    val_fraction: float,
    extensions: frozenset[str],
) -> list[PlannedSample]:
    """The samples of a dataset: every image with captions and a file, ordered by a hash of the key.

    `splits` maps image names to splits. Without it the annotations' own splits are used. If there are none either,
    a hash of the name puts an image into `val` with probability `val_fraction`, else into `train`. Raises
    `InputError` if nothing is left.
    """
    images = _Images(files, extensions)
    by_name = None if splits is None else _by_name(splits)
    own = any(annotation.split for annotation in annotations)
    samples: list[PlannedSample] = []
    short_keys = Counter(make_key(annotation.image) for annotation in annotations)
    keys: set[str] = set()
    used: set[str] = set()
    captioned: set[str] = set()
    for annotation in annotations:
        file = images.find(annotation.image)
        if file is None:
            problems.add("images with captions that are not in the image folder, skipped", annotation.image)
            continue
        captioned.add(file.path)
        if by_name is not None:
            split = by_name.get(annotation.image) or by_name.get(posixpath.basename(annotation.image))
        else:
            split = annotation.split if own else _hash_split(annotation.image, val_fraction)
        if split is None or not re.fullmatch(r"[A-Za-z0-9_]+", split):
            problems.add("images without a split, skipped", annotation.image)
            continue
        if file.path in used:
            problems.add("images listed under two names, the second skipped", annotation.image)
            continue
        used.add(file.path)
        key = make_key(annotation.image, full_path=short_keys[make_key(annotation.image)] > 1)
        if key in keys:
            key = f"{key}-{_digest(annotation.image)[:8]}"
            problems.add("images whose names differ only in dots or extension, given a longer key", annotation.image)
        keys.add(key)
        samples.append(PlannedSample(key, annotation.image_id, file.path, file.size, annotation.captions, split))
    problems.add_all("images without captions, skipped", images.without(captioned))
    if not samples:
        details = "".join(f"\n  {line}" for line in problems.lines())
        raise InputError(
            f"No image has both a file and a caption. Do --images and --captions belong together?{details}"
        )
    # Shuffled, so that every shard is a random sample of its split, and training shuffles well within a few shards.
    return sorted(samples, key=lambda sample: (_digest(sample.key), sample.key))


def cut_shards(samples: Sequence[PlannedSample], *, shard_samples: int) -> list[PlannedShard]:
    """The shards of all splits: at most `shard_samples` samples and `MAX_SHARD_BYTES` of images each."""
    found = {sample.split for sample in samples}
    shards = []
    for split in sorted(found, key=lambda name: (_SPLIT_ORDER.index(name) if name in _SPLIT_ORDER else 9, name)):
        groups: list[list[PlannedSample]] = [[]]
        size = 0
        for sample in (sample for sample in samples if sample.split == split):
            if groups[-1] and (len(groups[-1]) == shard_samples or size + sample.size > MAX_SHARD_BYTES):
                groups.append([])
                size = 0
            groups[-1].append(sample)
            size += sample.size
        shards += [PlannedShard(f"{split}-{number:06d}.tar", tuple(group)) for number, group in enumerate(groups)]
    return shards


def plan_identity(shards: Sequence[PlannedShard], **settings: object) -> str:
    """A hash of everything that determines the shards' contents, except the location of the images."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for shard in shards:
        digest.update(json.dumps(asdict(shard)).encode())
    return digest.hexdigest()[:16]


def make_key(image: str, *, full_path: bool = False) -> str:
    """The WebDataset key of an image: its file name, or its `full_path`, without the extension.

    Dots, which would end the key, become underscores, and so do characters that are unsafe in tars and URIs.
    """
    path = posixpath.normpath(image).lstrip("/")
    stem = posixpath.splitext(path if full_path else posixpath.basename(path))[0]
    key = re.sub(r"[^\w/-]", "_", stem)
    # webdataset skips folders with names like __this__.
    return re.sub(r"^__(?=[^/]*__/)", "_", key)


class _Images:
    """The image files below a folder, which can be found by path or by name alone."""

    def __init__(self, files: Iterable[FileInfo], extensions: frozenset[str]) -> None:
        self._files: dict[str, FileInfo] = {}
        self._named: dict[str, FileInfo | None] = {}
        self._extensions = extensions
        for file in files:
            self._files[file.path] = file
            name = posixpath.basename(file.path)
            # None marks an ambiguous name.
            self._named[name] = None if name in self._named else file

    def find(self, image: str) -> FileInfo | None:
        """The file at `image`, or else the only one of its name if one path is a suffix of the other."""
        exact = self._files.get(image)
        named = self._named.get(posixpath.basename(image))
        if exact is None and named is not None:
            # val2014/x.jpg in the captions and x.jpg in the folder, or vice versa; never a/x.jpg for b/x.jpg.
            longer, shorter = sorted((image, named.path), key=len, reverse=True)
            return named if longer.endswith("/" + shorter) else None
        return exact

    def without(self, captioned: set[str]) -> list[str]:
        """The paths of image files that are not among `captioned`."""
        return [
            path
            for path in self._files
            if path not in captioned and posixpath.splitext(path)[1].lower() in self._extensions
        ]


def _by_name(splits: Mapping[str, str]) -> dict[str, str]:
    """Splits by path and by file name, since one source writes `val2014/x.jpg` and another `x.jpg`."""
    return {posixpath.basename(path): split for path, split in splits.items()} | dict(splits)


def _hash_split(image: str, val_fraction: float) -> str:
    return "val" if int(_digest(image)[:13], 16) < val_fraction * 16**13 else "train"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
