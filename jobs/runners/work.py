"""The interface of runners: the work that they are given, the results of shards, and the `Runner` protocol.

Implementations are `runners.ray_runner` and `runners.local`.
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
from captioning.run.fetch import FetchSettings
from captioning.run.shard_io import ShardIO
from captioning.storage import StorageSettings
from jobs.workers.decode_process import DecodeSettings
from jobs.workers.micro_batches import CaptionerLike

if TYPE_CHECKING:
    from jobs.runners.pools import Node, Pools


#: The stages of which workers report busy seconds, in order.
STAGES = ("fetch", "decode", "model", "write")


@dataclass(frozen=True)
class Work:
    """Everything that workers need besides shard numbers. Small and picklable."""

    shard_io: ShardIO
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
    """The counts of a finished shard: images, errors by class, busy seconds by stage."""

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
    """The sums over finished shards. A shard that is done twice counts once."""

    def __init__(self) -> None:
        self.images = 0
        self.error_classes: Counter[str] = Counter()
        self.stages: Counter[str] = Counter(dict.fromkeys(STAGES, 0.0))
        self._seen: dict[str, set[int]] = {}

    def __bool__(self) -> bool:
        """Whether any shard was finished."""
        return bool(self._seen)

    def shards(self, kind: str) -> Collection[int]:
        """The numbers of the shards counted for this `kind` of work."""
        return self._seen.get(kind, frozenset())

    def add(self, kind: str, result: ShardResult) -> None:
        """Count a finished shard, once for each `kind` of work."""
        seen = self._seen.setdefault(kind, set())
        if result.shard in seen:
            return
        seen.add(result.shard)
        self.images += result.images
        self.error_classes.update(result.error_classes)
        self.stages.update(result.stages)


class Observer(Protocol):
    """Receives the progress of a run, to report it elsewhere."""

    def shard_finished(self, result: ShardResult, *, images: int, shards: int, rate: float | None) -> None:
        """Handle a finished shard, with the remaining images and shards, and the rate in images/s."""
        ...


class Runner(Protocol):
    """Captions shards."""

    def nodes(self) -> "list[Node]":
        """The machines that it runs on."""
        ...

    def max_workers(self, shards: int, images: int) -> int:
        """How many captioners this many shards, with this many images in total, can keep busy."""
        ...

    def require_shared(self, file: Path) -> None:
        """Raise `UsageError` unless all machines see this file, which exists on this one."""
        ...

    def observe(
        self, run: str, pools: "Pools", notify: Callable[[str], None], log_event: Callable[..., None]
    ) -> AbstractContextManager[Observer | None]:
        """An observer of the run of OUTPUT `run` with these pools, or None.

        `notify` shows users a line; `log_event` appends an event to the run's event log, given its kind and fields.
        Both may be called from any thread.
        """
        ...

    def caption_shards(self, work: Work, pools: "Pools", shards: Sequence[int]) -> Generator[ShardResult, None, None]:
        """Caption the shards with these numbers; yields each as it is finished, in no order. Closing it stops the rest.

        Raises the `CaptioningError` of a worker unchanged, and `UnfinishedError` for workers that died.
        """
        ...

    def call(self, function: Callable[..., Any], *arguments: Any, pools: "Pools") -> Any:
        """Call a module-level function in a process like a captioner's of these pools, and return its result."""
        ...


def error_to_json(error: Exception) -> dict[str, Any]:
    """An error as JSON-compatible values, in place of a `SHARD_RESULT` row."""
    kind = type(error).__name__ if isinstance(error, CaptioningError) else ""
    text = str(error) if kind else f"{type(error).__name__}: {error}"
    details = {name: getattr(error, name) for name in ("error_class", "transient") if hasattr(error, name)}
    return {"error": kind, "text": text, **details}


def error_from_json(row: Mapping[str, Any]) -> Exception | None:
    """The inverse of `error_to_json`; None for a row of a finished shard."""
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
