"""One shard from pixels to its staged part: captioned, and written once under its own name.

Runs in Ray Data's actor pool, one loaded captioner an actor. Micro-batches stay within the shard,
so that a shard's rows are the same whoever makes them and whenever.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from captioning.errors import CaptioningError, UnfinishedError
from captioning.run.index import Index
from captioning.run.sources import Entry
from captioning.run.table import Row, write_staged
from captioning.storage import StorageSettings
from jobs.decode_shard import pixels_of

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


class CaptionLike(Protocol):
    """What is read of a caption: see `captioning.captioner.Caption`."""

    @property
    def text(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def alternatives(self) -> tuple[tuple[str, float], ...]: ...


class CaptionerLike(Protocol):
    """What is asked of a captioner here: see `captioning.captioner.Captioner`."""

    @property
    def name(self) -> str: ...

    def caption_pixels(self, pixels: np.ndarray[Any, Any], *, batch_size: int) -> Sequence[CaptionLike]:
        """A caption for each of the pixels (B, S, S, 3) uint8."""
        ...


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

    def __call__(self) -> CaptionerLike:
        """The captioner, loaded, its process set to `threads` threads."""
        import torch

        from captioning.captioner import load_captioner

        torch.set_num_threads(self.threads)
        precision: Any = self.precision
        captioner = load_captioner(
            self.ref, device=self.device, precision=precision, decoding=self.decoding, storage=self.storage
        )
        if captioner.name != self.name:
            raise UnfinishedError(
                f"The captioner {self.ref or 'that is bundled'} is {captioner.name} on this node, and {self.name} "
                "where the command was given. Put the same checkpoint on every node, or name it by a URI."
            )
        return captioner


class CaptionShard:
    """A Ray Data actor: a decoded shard in, its staged part written, its counts out."""

    def __init__(self, load: Callable[[], CaptionerLike], index: Index, batch_size: int) -> None:
        self.index = index
        self.batch_size = batch_size
        self.captioner: CaptionerLike | Exception
        try:
            self.captioner = load()
        except Exception as error:
            # What an actor's constructor raises comes to the driver as text only. A call's error comes whole.
            self.captioner = error

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Caption and write the one shard that `decoded` holds whole; returns one `SHARD_RESULT` row."""
        numbers = set(decoded.column("shard").to_pylist())
        assert len(numbers) == 1, f"a batch must be one shard, not {sorted(numbers)}"
        [number] = numbers
        if isinstance(self.captioner, CaptioningError):
            raise self.captioner
        if isinstance(self.captioner, Exception):
            raise UnfinishedError(
                f"The captioner could not be loaded: {type(self.captioner).__name__}: {self.captioner}"
            ) from self.captioner
        start = time.perf_counter()
        rows = caption_rows(self.captioner, decoded, batch_size=self.batch_size)
        captioned = time.perf_counter()
        write_staged(self.index.layout, self.index.shard(number), rows)
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


def caption_rows(captioner: CaptionerLike, decoded: pa.Table, *, batch_size: int) -> list[Row]:
    """Rows of the caption table for the images of a `DECODED` table, in its order.

    Raises `UnfinishedError` when the captioner itself does not work.
    """
    captions = iter(_captions(captioner, pixels_of(decoded), batch_size))
    rows = []
    for fact in decoded.drop_columns(["pixels"]).to_pylist():
        entry = Entry(fact["image_id"], fact["uri"])
        size = {key: fact[key] for key in ("width", "height", "size_bytes")}
        if fact["error_class"] is not None:
            rows.append(Row.failed(entry, fact["error_class"], fact["error_message"], model=captioner.name, **size))
            continue
        caption = next(captions)
        if isinstance(caption, Exception):
            why = f"The captioner failed on this image: {type(caption).__name__}: {caption}"
            rows.append(Row.failed(entry, "model", why, model=captioner.name, **size))
            continue
        rows.append(
            Row(
                image_id=entry.image_id,
                uri=entry.uri,
                caption=caption.text,
                score=caption.score,
                num_tokens=caption.num_tokens,
                alternatives=caption.alternatives,
                model=captioner.name,
                **size,
            )
        )
    return rows


def _captions(
    captioner: CaptionerLike, pixels: np.ndarray[Any, Any], batch_size: int
) -> Sequence[CaptionLike | Exception]:
    """A caption, or the reason why not, for each of the pixels (B, S, S, 3)."""
    if not len(pixels):
        return []
    try:
        return captioner.caption_pixels(pixels, batch_size=batch_size)
    except Exception as error:
        # Either one image is at fault, which costs that image, or the captioner, which ends the run:
        # a grey picture tells which.
        try:
            captioner.caption_pixels(np.full_like(pixels[:1], 128), batch_size=1)
        except Exception:
            raise UnfinishedError(
                f"The captioner {captioner.name} fails on every image: {type(error).__name__}: {error}. "
                "Finished shards are kept; give the same command again once this is mended "
                "(a smaller runtime.batch_size needs less memory)."
            ) from error
        return [_caption_alone(captioner, pixels[i : i + 1]) for i in range(len(pixels))]


def _caption_alone(captioner: CaptionerLike, pixels: np.ndarray[Any, Any]) -> CaptionLike | Exception:
    try:
        return captioner.caption_pixels(pixels, batch_size=1)[0]
    except Exception as error:
        return error
