"""Training shards: the index of a set of shards, and reading the samples of one.

A set is a folder of `{split}-{number}.tar` with `shards.json`, which is written last and has their counts. A sample
is `KEY.jpg` + `KEY.json`. Tars are read with `webdataset`; images are not decoded here.
"""

import json
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from captioning.errors import InputError
from captioning.storage import Location
from captioning.storage_errors import storage_errors

COUNTS_FILE = "shards.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Sample:
    """One image with all its captions. `image` holds JPEG bytes, not decoded; `image_id` is the dataset's own."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    split: str
    image_id: str = ""


@dataclass(frozen=True)
class ShardInfo:
    """A shard's file name and how many samples, captions and bytes are in it."""

    name: str
    samples: int
    captions: int
    bytes: int


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards and its counts. `splits` maps a split's name to its shards in order."""

    location: Location
    dataset: str
    identity: str
    splits: dict[str, tuple[ShardInfo, ...]]

    @staticmethod
    def open(location: Location) -> "ShardSet":
        """Read the counts file of `location`. Raises `InputError` if there is none or it is damaged."""
        path = location / COUNTS_FILE
        if not path.exists():
            raise InputError(
                f"{location} contains no training shards: {COUNTS_FILE} does not exist. Create them with "
                "`python -m jobs prepare`; if it was interrupted, run the same command again."
            )
        try:
            return ShardSet.from_json(location, json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is damaged ({error!r}). Prepare the dataset again into another folder."
            ) from error

    @staticmethod
    def from_json(location: Location, values: dict[str, Any]) -> "ShardSet":
        """The set that the contents of a counts file describe. Raises `ValueError`, `KeyError` or `TypeError`."""
        if values["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {values['format_version']}, not {FORMAT_VERSION}")
        splits = {
            split: tuple(ShardInfo(**shard) for shard in contents["shards"])
            for split, contents in values["splits"].items()
        }
        return ShardSet(location, values["dataset"], values["identity"], splits)

    def to_json(self) -> dict[str, Any]:
        """The contents of the counts file."""
        return {
            "format_version": FORMAT_VERSION,
            "dataset": self.dataset,
            "identity": self.identity,
            "splits": {
                split: {
                    "samples": sum(shard.samples for shard in shards),
                    "captions": sum(shard.captions for shard in shards),
                    "shards": [vars(shard) for shard in shards],
                }
                for split, shards in self.splits.items()
            },
        }

    @property
    def counts(self) -> dict[str, int]:
        """Samples by split."""
        return {split: sum(shard.samples for shard in shards) for split, shards in self.splits.items()}

    def split(self, name: str) -> tuple[ShardInfo, ...]:
        """The shards of split `name`, in order. Raises `InputError` for a split that has no sample."""
        if not self.counts.get(name):
            having = ", ".join(f"{split} ({count:,})" for split, count in self.counts.items() if count)
            raise InputError(f"{self.location} has no {name!r} split. Its splits are: {having}.")
        return self.splits[name]


def iterate_shard(location: Location, name: str, positions: Collection[int] | None = None) -> Iterator[Sample]:
    """The samples of shard `name` below `location`, in the order in which they were written.

    With `positions`, only the samples at these positions in the shard; the others are skipped without reading.
    Raises `InputError` for a damaged shard, `StorageError` for one that cannot be read.
    """
    where = location / name
    select = None if positions is None else _PositionFilter(positions)
    try:
        with storage_errors(where.uri), where.open_read() as stream:
            files = tar_file_expander([{"url": where.uri, "stream": stream}], select_files=select)
            for fields in group_by_keys(files):
                yield _sample(fields)
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError, AssertionError) as error:
        # webdataset appends the file's name to messages, after " @ ".
        reason = str(error.args[0] if error.args else type(error).__name__).partition(" @ ")[0]
        raise InputError(
            f"The shard {where} is damaged ({reason}). Delete the folder and prepare the dataset again."
        ) from error


class _PositionFilter:
    """Selects the files of a tar, given their names in order, whose samples are at `positions`."""

    def __init__(self, positions: Collection[int]) -> None:
        self.positions = frozenset(positions)
        self.key: str | None = None
        self.position = -1

    def __call__(self, file_name: str) -> bool:
        key, _ = base_plus_ext(file_name)
        if key != self.key:
            self.key = key
            self.position += 1
        return self.position in self.positions


def _sample(fields: dict[str, Any]) -> Sample:
    metadata = json.loads(fields["json"])
    captions, split, image_id = tuple(metadata["captions"]), metadata["split"], str(metadata["image_id"])
    return Sample(fields["__key__"], fields["jpg"], captions, split, image_id)
