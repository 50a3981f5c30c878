"""Captions one decoded shard and stages its rows, in one file under the shard's own name.

Runs in Ray Data's actor pool, one loaded captioner per actor. Micro-batches never span shards, so that a shard's
rows do not depend on where and when they are made.
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
from captioning.run.shard_io import ShardIO
from captioning.run.sources import Entry
from captioning.run.table import Row
from captioning.storage import StorageSettings
from jobs.workers.attempts import Attempts
from jobs.workers.decode_shard import pixels_of
from jobs.workers.isolate import Isolation
from jobs.workers.micro_batches import CaptionerLike, CaptionLike, MicroBatches

#: Process deaths: from which a shard is captioned in isolation, the most while loading, and the most per shard.
_ISOLATION_DEATHS, _MAX_LOAD_DEATHS, _MAX_DEATHS = 2, 4, 20

#: The row of a finished shard that the driver gets: counts, and busy seconds by stage.
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
    """Loads an actor's captioner; called once in the actor's process.

    `name` is that of the driver's captioner, to detect a node on which REF is another one.
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
    """The fraction of a GPU; below 1 the process shares the GPU, and limits its memory to this fraction."""

    def __call__(self) -> CaptionerLike:
        """Load and warm up the captioner, with `threads` PyTorch threads."""
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
                f"The captioner {self.ref or '(bundled)'} is {captioner.name} on this node, but {self.name} where the "
                "command was run. Put the same checkpoint on every node, or pass it as a URI."
            )
        if self.device == "cuda":
            # The first images on a GPU wait for its libraries to load: better a warm-up than the first shard.
            side = captioner.preprocess.settings.size
            captioner.caption_pixels(np.zeros((1, side, side, 3), dtype=np.uint8))
        return captioner


class CaptionShard:
    """A Ray Data actor: takes a decoded shard, stages its rows, and returns its counts.

    A shard at which processes have died is captioned in isolation; `attempts` counts the deaths, unless it is None.
    `hang_s` is the time limit of a micro-batch (0: none).
    """

    def __init__(
        self,
        load: Callable[[], CaptionerLike],
        shard_io: ShardIO,
        batch_size: int,
        attempts: Attempts | None = None,
        hang_s: float = 0.0,
    ) -> None:
        self.shard_io = shard_io
        self.load = load
        self.attempts = attempts
        self.hang_s = hang_s
        self.batch_size = batch_size
        self.batches: MicroBatches | Exception
        try:
            self.batches = MicroBatches(self._load(), batch_size, hang_s)
        except Exception as error:
            # Ray sends an error of an actor's constructor to the driver as text only, but one of a call unchanged.
            self.batches = error

    @property
    def captioner(self) -> CaptionerLike | Exception:
        """The captioner, or the error that it failed to load with."""
        return self.batches.captioner if isinstance(self.batches, MicroBatches) else self.batches

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Caption and stage the shard `decoded`, which must be complete; returns one `SHARD_RESULT` row."""
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
        if deaths >= _ISOLATION_DEATHS:
            caption = Isolation(self.load, self.batch_size, self.hang_s).caption
        rows = caption_rows(caption, decoded, model=self.batches.captioner.name)
        captioned = time.perf_counter()
        self.shard_io.stage(number, rows)
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
        if deaths >= _MAX_LOAD_DEATHS:
            raise UnfinishedError(
                f"The captioner's process died {deaths} times while loading. Finished shards are kept; run the same "
                "command again to resume. If memory ran out, use a smaller runtime.actors."
            )
        captioner = self.load()
        self._end("load")
        return captioner

    def _begin(self, key: str) -> int:
        deaths = self.attempts.begin(key) if self.attempts else 0
        if deaths >= _MAX_DEATHS:
            raise UnfinishedError(
                f"Worker processes died {deaths} times on the same piece of work. Finished shards are kept; run the "
                "same command again to resume. If memory ran out, use a smaller runtime.actors."
            )
        return deaths

    def _end(self, key: str) -> None:
        if self.attempts:
            self.attempts.end(key)


def caption_rows(
    caption: Callable[[np.ndarray[Any, Any]], Sequence[CaptionLike | ImageError]], decoded: pa.Table, *, model: str
) -> list[Row]:
    """Rows of the caption table for the images of a `DECODED` table, in order.

    `caption` returns a caption or an error for each of the pixels (B, S, S, 3).
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
