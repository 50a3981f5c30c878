"""One captioner's replica: decodes, batches and captions the images of requests, without HTTP or Ray.

Images are untrusted, so they are decoded in small processes that may die (`jobs.workers.decode_process`); the
captioner has a process of its own (`caption_process`). The event loop only passes data between them.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from captioning.errors import CaptioningError, UnfinishedError
from jobs.serving.batcher import Batcher
from jobs.serving.caption_process import CaptionProcess
from jobs.serving.request_errors import to_request_error
from jobs.serving.settings import ServeSettings
from jobs.workers.decode_process import decoder_of

if TYPE_CHECKING:
    from captioning.data.preprocess import Pixels

#: Requests with the same key may share a batch: whether attention is wanted, and the decoding settings given.
Key = tuple[bool, tuple[tuple[str, Any], ...]]


class CaptionerReplica:
    """Loads a captioner and captions images with it."""

    def __init__(
        self, ref: str | None, settings: ServeSettings, threads: int, cores: Sequence[int] = (), device: str = "auto"
    ) -> None:
        """`cores`: ids of the cores to pin the captioner to, if any; `device` as in `load_captioner`."""
        self._captioner = CaptionProcess(ref, settings, threads, cores, device)
        size = settings.batch_size
        if size == "auto":
            # On CPUs at most half of the requests in flight, or every request would wait for all others.
            size = 32 if self._captioner.device == "cpu" else 128
        self._batcher: Batcher[Key, NDArray[np.uint8], dict[str, Any]] = Batcher(self._caption_batch, size=size)
        preprocess = self._captioner.preprocess
        pixels = min(preprocess.max_pixels, settings.limits.max_pixels)
        self._preprocess = replace(preprocess, max_pixels=pixels)
        self._limits = settings.decode
        self._decoders = ThreadPoolExecutor(settings.decode_processes, thread_name_prefix="decode")

    def about(self) -> dict[str, Any]:
        """The captioner's name, kind, whether it has attention, and its default decoding."""
        return self._captioner.about

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that keeps raising."""
        if self._captioner.lost:
            raise UnfinishedError("The captioner's process has died.")

    def close(self) -> None:
        """End the captioner's process."""
        self._captioner.close()

    async def caption(self, data: bytes, overrides: Mapping[str, Any], attention: bool) -> dict[str, Any]:
        """The answer for one image file, or `{"refused": RequestError}` where the request is at fault.

        Errors are returned, not raised: Ray would wrap them in tracebacks and log every bad image.
        """
        begin = time.perf_counter()
        try:
            pixels = await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, data)
            decoded = time.perf_counter()
            key = (attention, tuple(sorted(overrides.items())))
            batched = await self._batcher.submit(key, pixels.pixels)
        except CaptioningError as error:
            return {"refused": to_request_error(error)}
        result = dict(batched.result)
        words, weights = result.pop("words"), result.pop("weights")
        return {
            **result,
            "model": self._captioner.about["name"],
            "width": pixels.width,
            "height": pixels.height,
            "attention": self._attention(words, weights, pixels) if weights is not None else None,
            "timing": {
                "decode_ms": round(1000 * (decoded - begin), 1),
                "queue_ms": round(1000 * batched.queue_seconds, 1),
                "model_ms": round(1000 * batched.run_seconds, 1),
                "batch_size": batched.batch_size,
            },
        }

    def _decode(self, data: bytes) -> "Pixels":
        return decoder_of(self._preprocess, self._limits).decode(data)[0]

    def _caption_batch(self, key: Key, pixels: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        attention, overrides = key
        return self._captioner.caption(np.stack(pixels), dict(overrides), attention=attention)

    def _attention(
        self, words: Sequence[str], weights: Sequence[Sequence[Sequence[float]]], pixels: "Pixels"
    ) -> dict[str, Any]:
        """Words, weights (W × rows × columns), and the part of the image that the grid covers."""
        width = height = 1.0
        if self._preprocess.mode == "crop":
            side = min(pixels.width, pixels.height)
            width, height = side / pixels.width, side / pixels.height
        return {
            "words": words,
            "weights": weights,
            "box": [round(each, 5) for each in ((1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2)],
        }
