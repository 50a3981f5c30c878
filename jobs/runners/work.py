"""What a runner is given, and what it gives back: the work of shards, small enough to travel to any process.

Knows nothing of who does it: `runners.pipeline` on Ray, `runners.local` in processes of this machine.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from captioning import errors
from captioning.data.preprocess import PreprocessSettings
from captioning.errors import CaptioningError, ImageError, StorageError
from captioning.run.book import ShardBook
from captioning.run.fetch import FetchSettings
from captioning.storage import StorageSettings
from jobs.workers.decode_process import DecodeSettings
from jobs.workers.micro_batches import CaptionerLike

if TYPE_CHECKING:
    from jobs.runners.pools import Node, Pools


#: Where a worker's seconds go, in the order in which an image comes through.
STAGES = ("fetch", "decode", "model", "write")


@dataclass(frozen=True)
class Work:
    """What the workers need to know. Small, and picklable."""

    book: ShardBook
    preprocess: PreprocessSettings
    storage: StorageSettings
    load: Callable[[], CaptionerLike]
    max_retries: int
    fetch: FetchSettings = FetchSettings()
    decode: DecodeSettings = DecodeSettings()
    hang_s: float = 0.0
    stall_s: float = 0.0


@dataclass(frozen=True)
class ShardResult:
    """What a finished shard brought: images, errors by class, busy seconds by stage."""

    shard: int
    images: int
    error_classes: dict[str, int]
    stages: dict[str, float]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ShardResult":
        """Read a row of `SHARD_RESULT`."""
        return cls(
            shard=row["shard"],
            images=row["images"],
            error_classes=json.loads(row["error_classes"]),
            stages={stage: row[stage] for stage in STAGES},
        )

    @property
    def errors(self) -> int:
        """Images that failed."""
        return sum(self.error_classes.values())


class Tally:
    """What finished shards brought in all. A shard that is done twice counts once; none is kept."""

    def __init__(self) -> None:
        self.images = 0
        self.error_classes: Counter[str] = Counter()
        self.stages: Counter[str] = Counter(dict.fromkeys(STAGES, 0.0))
        self._seen: dict[str, set[int]] = {}

    def __bool__(self) -> bool:
        """Whether any shard was finished."""
        return bool(self._seen)

    def shards(self, what: str) -> Collection[int]:
        """The shards of which `what` was done."""
        return self._seen.get(what, frozenset())

    def add(self, what: str, result: ShardResult) -> None:
        """Count a shard of which `what` was done."""
        seen = self._seen.setdefault(what, set())
        if result.shard in seen:
            return
        seen.add(result.shard)
        self.images += result.images
        self.error_classes.update(result.error_classes)
        self.stages.update(result.stages)


class Observer(Protocol):
    """Is told what a run does, for the eyes of people and programs elsewhere."""

    def finished(self, result: ShardResult, *, images: int, shards: int, rate: float | None) -> None:
        """A shard was finished; so many images and shards are left, and so many images a second it goes."""
        ...


class Runner(Protocol):
    """Where shards are captioned."""

    def nodes(self) -> "list[Node]":
        """The machines that there are."""
        ...

    def most_workers(self, shards: int, images: int) -> int:
        """How many captioners so many shards with so many images in all can keep busy."""
        ...

    def require_shared(self, file: Path) -> None:
        """See that all machines have this file, which is there on this one. Raises `UsageError`."""
        ...

    def observe(
        self, run: str, pools: "Pools", say: Callable[[str], None], note: Callable[..., None]
    ) -> AbstractContextManager[Observer | None]:
        """What looks on while the run of OUTPUT `run` is worked on by these pools.

        `say` tells people a line; `note` adds an event to the run's event log, by its kind and fields. Both may be
        called from any thread.
        """
        ...

    def caption_shards(self, work: Work, pools: "Pools", shards: Sequence[int]) -> Generator[ShardResult, None, None]:
        """Caption the shards of these numbers; yields each as it is finished, in no order. Closed, it stops the rest.

        Raises the `CaptioningError` of a worker as such, and `UnfinishedError` for workers that died.
        """
        ...

    def call(self, function: Callable[..., Any], *arguments: Any, pools: "Pools") -> Any:
        """Call a function of a module in a process like a captioner's of these pools, and give what it returns."""
        ...


def describe_error(error: Exception) -> dict[str, Any]:
    """An error as JSON takes it, in the place of a `SHARD_RESULT` row."""
    kind = type(error).__name__ if isinstance(error, CaptioningError) else ""
    text = str(error) if kind else f"{type(error).__name__}: {error}"
    details = {name: getattr(error, name) for name in ("error_class", "transient") if hasattr(error, name)}
    return {"error": kind, "text": text, **details}


def error_of(row: Mapping[str, Any]) -> Exception | None:
    """The error that `describe_error` described; None for a row of a finished shard."""
    if "error" not in row:
        return None
    kind = getattr(errors, row["error"], None)
    if kind is errors.StorageError:
        return StorageError(row["error_class"], row["text"], transient=row["transient"])
    if kind is errors.ImageError:
        return ImageError(row["error_class"], row["text"])
    if isinstance(kind, type) and issubclass(kind, CaptioningError):
        return kind(row["text"])
    return RuntimeError(f"A worker failed, its traceback is above: {row['text']}")
