"""Writes one training shard, a tar of JPEGs and their captions, atomically.

The tar's bytes depend on the images and the plan alone, so writing a shard again gives the same file. JPEGs are
copied byte for byte; other formats are encoded as JPEG.
"""

import io
import json
import tarfile
from dataclasses import dataclass, field

from PIL import Image

from captioning.data.images import decode_image
from captioning.data.problems import Problems
from captioning.data.shard_plan import PlannedSample, PlannedShard
from captioning.data.shards import ShardInfo
from captioning.errors import ImageError, StorageError
from captioning.storage import Location


@dataclass
class ShardReport:
    """The counts of a shard that was written, and the images that were re-encoded or left out."""

    info: ShardInfo
    problems: Problems = field(default_factory=Problems)


def write_shard(target: Location, images: Location, shard: PlannedShard, *, jpeg_quality: int) -> ShardReport:
    """Write `shard` below `target` from the files below `images`, one image at a time.

    An image that is missing or cannot be decoded is left out and reported. Raises `StorageError` if the storage
    fails, so that no image is lost to a network failure.
    """
    problems = Problems()
    buffer = io.BytesIO()
    written, captions = 0, 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for sample in shard.samples:
            jpeg = _read_jpeg(images, sample, problems, jpeg_quality)
            if jpeg is None:
                continue
            _add(tar, f"{sample.key}.jpg", jpeg)
            _add(tar, f"{sample.key}.json", _metadata(sample))
            written += 1
            captions += len(sample.captions)
    data = buffer.getvalue()
    (target / shard.name).write_bytes(data)
    return ShardReport(ShardInfo(shard.name, written, captions, len(data)), problems)


def _read_jpeg(images: Location, sample: PlannedSample, problems: Problems, quality: int) -> bytes | None:
    try:
        data = (images / sample.image).read_bytes()
        rgb = decode_image(data)
    except ImageError as error:
        problems.add(f"images that cannot be decoded ({error.error_class}), skipped", sample.image)
        return None
    except StorageError as error:
        if error.error_class != "missing":
            raise
        problems.add("images that disappeared while the shards were written, skipped", sample.image)
        return None
    if data.startswith(b"\xff\xd8\xff"):
        return data
    problems.add(f"images in other formats, encoded as JPEG of quality {quality}", sample.image)
    encoded = io.BytesIO()
    Image.fromarray(rgb).save(encoded, "JPEG", quality=quality, subsampling=0)
    return encoded.getvalue()


def _metadata(sample: PlannedSample) -> bytes:
    metadata = {"image_id": sample.image_id, "captions": list(sample.captions), "split": sample.split}
    return json.dumps(metadata).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # TarInfo's defaults have no time or owner, so the bytes are reproducible.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
