"""One shard from pixels to its staged part: captioned, and written once under its own name.

Runs in Ray Data's actor pool, one loaded captioner an actor. Micro-batches stay within the shard,
so that a shard's rows are the same whoever makes them and whenever.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from captioning.backends.names import EncoderBackend
from captioning.errors import CaptioningError, ImageError, UnfinishedError
from captioning.run.book import ShardBook
from captioning.run.sources import Entry
from captioning.run.table import Row
from captioning.storage import StorageSettings
from jobs.workers.attempts import Attempts
from jobs.workers.decode_shard import pixels_of
from jobs.workers.isolate import Isolation
from jobs.workers.micro_batches import CaptionerLike, CaptionLike, MicroBatches

#: Deaths at a shard from which on it is captioned in isolation; while loading; and at most.
_SUSPECT_DEATHS, _LOAD_DEATHS, _MOST_DEATHS = 2, 4, 20

#: What a finished shard tells the driver: counts, and busy seconds by stage.
SHARD_RESULT = pa.schema(
    [
        ("shard", pa.int64()),
        ("images", pa.int64()),
        ("error_classes", pa.string()),
        ("fetch", pa.float64()),
        ("decode", pa.float64()),
        ("model", pa.float64()),
        ("write", pa.float64()),
    ]
)


@dataclass(frozen=True)
class LoadCaptioner:
    """How an actor gets its captioner: called once in the actor's process.

    `name` is the captioner's on the driver: a node where REF is another one is found out.
    """

    ref: str | None
    name: str
    device: str
    precision: str
    decoding: dict[str, Any]
    storage: StorageSettings
    threads: int
    encoder: EncoderBackend = "auto"
    cuda_graphs: bool = False
    gpu_share: float = 0.0
    """Of one GPU; below 1 others are on it too, and the process must keep to its share of the memory."""

    def __call__(self) -> CaptionerLike:
        """The captioner, loaded and warm, its process set to `threads` threads."""
        import torch

        from captioning.captioner import load_captioner

        torch.set_num_threads(self.threads)
        if self.device == "cuda" and 0 < self.gpu_share < 1:
            torch.cuda.set_per_process_memory_fraction(self.gpu_share)
        precision: Any = self.precision
        captioner = load_captioner(
            self.ref,
            device=self.device,
            precision=precision,
            encoder=self.encoder,
            cuda_graphs=self.cuda_graphs,
            decoding=self.decoding,
            storage=self.storage,
        )
        if captioner.name != self.name:
            raise UnfinishedError(
                f"The captioner {self.ref or 'that is bundled'} is {captioner.name} on this node, and {self.name} "
                "where the command was given. Put the same checkpoint on every node, or name it by a URI."
            )
        if self.device == "cuda":
            # The first images on a GPU wait for its libraries to be loaded: better these than a shard's.
            side = captioner.preprocess.settings.size
            captioner.caption_pixels(np.zeros((1, side, side, 3), dtype=np.uint8))
        return captioner


class CaptionShard:
    """A Ray Data actor: a decoded shard in, its staged part written, its counts out.

    A shard at which processes died before is captioned in isolation. How often that was, `attempts`
    knows; without it nobody counts. `hang_s` is what a micro-batch may take (0: anything).
    """

    def __init__(
        self,
        load: Callable[[], CaptionerLike],
        book: ShardBook,
        batch_size: int,
        attempts: Attempts | None = None,
        hang_s: float = 0.0,
    ) -> None:
        self.book = book
        self.load = load
        self.attempts = attempts
        self.hang_s = hang_s
        self.batch_size = batch_size
        self.batches: MicroBatches | Exception
        try:
            self.batches = MicroBatches(self._load(), batch_size, hang_s)
        except Exception as error:
            # What an actor's constructor raises comes to the driver as text only. A call's error comes whole.
            self.batches = error

    @property
    def captioner(self) -> CaptionerLike | Exception:
        """The captioner, or why there is none."""
        return self.batches.captioner if isinstance(self.batches, MicroBatches) else self.batches

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Caption and write the one shard that `decoded` holds whole; returns one `SHARD_RESULT` row."""
        numbers = set(decoded.column("shard").to_pylist())
        assert len(numbers) == 1, f"a batch must be one shard, not {sorted(numbers)}"
        [number] = numbers
        if isinstance(self.batches, CaptioningError):
            raise self.batches
        if isinstance(self.batches, Exception):
            raise UnfinishedError(
                f"The captioner could not be loaded: {type(self.batches).__name__}: {self.batches}"
            ) from self.batches
        start = time.perf_counter()
        deaths = self._begin(f"shard-{number}")
        caption = self.batches.caption
        if deaths >= _SUSPECT_DEATHS:
            caption = Isolation(self.load, self.batch_size, self.hang_s).caption
        rows = caption_rows(caption, decoded, model=self.batches.captioner.name)
        captioned = time.perf_counter()
        self.book.stage(number, rows)
        self._end(f"shard-{number}")
        written = time.perf_counter()
        result = {
            "shard": number,
            "images": len(rows),
            "error_classes": json.dumps(Counter(row.error_class for row in rows if row.status == "error")),
            "fetch": sum(decoded.column("fetch_seconds").to_pylist()),
            "decode": sum(decoded.column("decode_seconds").to_pylist()),
            "model": captioned - start,
            "write": written - captioned,
        }
        return pa.Table.from_pylist([result], schema=SHARD_RESULT)

    def _load(self) -> CaptionerLike:
        deaths = self._begin("load")
        if deaths >= _LOAD_DEATHS:
            raise UnfinishedError(
                f"The captioner's process ended {deaths} times while it was loaded. If memory ran out, a smaller "
                "runtime.actors helps. Finished shards are kept; give the same command again to go on."
            )
        captioner = self.load()
        self._end("load")
        return captioner

    def _begin(self, key: str) -> int:
        deaths = self.attempts.begin(key) if self.attempts else 0
        if deaths >= _MOST_DEATHS:
            raise UnfinishedError(
                f"Worker processes were lost {deaths} times over at one piece of work. Finished shards are kept; give "
                "the same command again to go on. If memory ran out, a smaller runtime.actors helps."
            )
        return deaths

    def _end(self, key: str) -> None:
        if self.attempts:
            self.attempts.end(key)


def caption_rows(
    caption: Callable[[np.ndarray[Any, Any]], Sequence[CaptionLike | ImageError]], decoded: pa.Table, *, model: str
) -> list[Row]:
    """Rows of the caption table for the images of a `DECODED` table, in its order.

    `caption` gives a caption, or the reason why not, for each of the pixels (B, S, S, 3).
    """
    pixels = pixels_of(decoded)
    captions = iter(caption(pixels) if len(pixels) else [])
    rows = []
    for fact in decoded.drop_columns(["pixels"]).to_pylist():
        entry = Entry(fact["image_id"], fact["uri"])
        size = {key: fact[key] for key in ("width", "height", "size_bytes")}
        if fact["error_class"] is not None:
            rows.append(Row.failed(entry, fact["error_class"], fact["error_message"], model=model, **size))
            continue
        found = next(captions)
        if isinstance(found, ImageError):
            rows.append(Row.failed(entry, found.error_class, found.message, model=model, **size))
            continue
        rows.append(
            Row(
                image_id=entry.image_id,
                uri=entry.uri,
                caption=found.text,
                score=found.score,
                num_tokens=found.num_tokens,
                alternatives=found.alternatives,
                model=model,
                **size,
            )
        )
    return rows
