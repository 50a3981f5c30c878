"""One captioner that answers requests: decodes what they send, batches, captions. Knows nothing of HTTP, or of Ray.

Images are decoded in small processes that may die (`jobs.workers.decode_process`), since anybody may have
sent them; captioning has a thread of its own. The event loop only hands things on.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from captioning.config import to_dict
from captioning.errors import CaptioningError
from jobs.serving.batcher import Batcher
from jobs.serving.failures import refusal
from jobs.serving.settings import ServeSettings
from jobs.workers.decode_process import decoder_of

if TYPE_CHECKING:
    from captioning.captioner import Caption
    from captioning.data.preprocess import Pixels

#: What decides which requests may share a batch: whether attention is wanted, and the decoding settings that are given.
Key = tuple[bool, tuple[tuple[str, Any], ...]]
Said = tuple["Caption", tuple[str, ...], NDArray[np.float32] | None]


class CaptionerReplica:
    """Loads a captioner and captions images for whoever asks."""

    def __init__(self, ref: str | None, settings: ServeSettings, threads: int) -> None:
        import torch

        from captioning.captioner import load_captioner

        torch.set_num_threads(threads)
        self._captioner = load_captioner(
            ref,
            precision=settings.precision,
            encoder=settings.encoder,
            decoding=settings.decoding,
            storage=settings.storage,
        )
        size = settings.batch_size
        if size == "auto":
            size = 32 if self._captioner.model.device.type == "cpu" else 128
        self._batcher: Batcher[Key, NDArray[np.uint8], Said] = Batcher(self._run, size=size)
        preprocess = self._captioner.preprocess.settings
        pixels = min(preprocess.max_pixels, settings.limits.max_pixels)
        self._preprocess = replace(preprocess, max_pixels=pixels)
        self._limits = settings.decode
        self._decoders = ThreadPoolExecutor(settings.decode_processes, thread_name_prefix="decode")

    def about(self) -> dict[str, Any]:
        """What this captioner is: name, kind, whether it attends to a grid, how it decodes unless asked otherwise."""
        return {
            "name": self._captioner.name,
            "kind": self._captioner.model.settings.kind,
            "attention": self._captioner.model.has_attention,
            "decoding": to_dict(self._captioner.decoding),
        }

    async def caption(self, data: bytes, overrides: Mapping[str, Any], attention: bool) -> dict[str, Any]:
        """The answer about one image file, or `{"refused": RequestError}` where the fault is the request's.

        Errors are handed over, not raised: Ray would wrap them in tracebacks and log each bad image.
        """
        begin = time.perf_counter()
        try:
            pixels = await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, data)
            decoded = time.perf_counter()
            key = (attention, tuple(sorted(overrides.items())))
            batched = await self._batcher.submit(key, pixels.pixels)
        except CaptioningError as error:
            return {"refused": refusal(error)}
        caption, words, weights = batched.result
        return {
            "caption": caption.text,
            "score": round(caption.score, 5),
            "num_tokens": caption.num_tokens,
            "alternatives": [{"caption": text, "score": round(score, 5)} for text, score in caption.alternatives],
            "model": self._captioner.name,
            "width": pixels.width,
            "height": pixels.height,
            "attention": self._attention(words, weights, pixels) if attention else None,
            "timing": {
                "decode_ms": round(1000 * (decoded - begin), 1),
                "queue_ms": round(1000 * batched.queue_seconds, 1),
                "model_ms": round(1000 * batched.run_seconds, 1),
                "batch_size": batched.batch_size,
            },
        }

    def _decode(self, data: bytes) -> "Pixels":
        return decoder_of(self._preprocess, self._limits).decode(data)[0]

    def _run(self, key: Key, pixels: Sequence[NDArray[np.uint8]]) -> list[Said]:
        attention, overrides = key
        batch, given = np.stack(pixels), dict(overrides)
        if attention:
            explained = self._captioner.explain_pixels(batch, **given)
            return [(each.caption, each.words, each.weights) for each in explained]
        captions = self._captioner.caption_pixels(batch, batch_size=len(batch), **given)
        return [(caption, (), None) for caption in captions]

    def _attention(
        self, words: Sequence[str], weights: NDArray[np.float32] | None, pixels: "Pixels"
    ) -> dict[str, Any] | None:
        """Words and weights (W × rows × columns), and the part of the image that the grid lies on."""
        if weights is None:
            return None
        width = height = 1.0
        if self._preprocess.mode == "crop":
            side = min(pixels.width, pixels.height)
            width, height = side / pixels.width, side / pixels.height
        return {
            "words": list(words),
            "weights": np.round(weights.astype(float), 5).tolist(),
            "box": [round(each, 5) for each in ((1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2)],
        }
