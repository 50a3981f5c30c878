"""The process that captions for a server: `python -m jobs.serving.caption_child`, started by `caption_process`.

It does nothing else: beside an event loop in one process, a captioner would wait for Python's global interpreter
lock between operations, thousands of times per batch.
"""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from captioning.config import build, to_dict
from captioning.errors import CaptioningError
from jobs.cores import set_affinity
from jobs.serving.request_errors import to_request_error
from jobs.serving.settings import ServeSettings
from jobs.workers.child_process import Requests
from jobs.workers.micro_batches import EXIT_GPU_BROKEN, is_broken_gpu

if TYPE_CHECKING:
    from captioning.captioner import Caption, Captioner


def main() -> int:
    """Caption batches until the parent is gone."""
    requests = Requests()
    start = requests.next()
    if start is None:
        return 0
    try:
        captioner = _load(**json.loads(start[0]))
    except Exception as error:
        reason = str(error) if isinstance(error, CaptioningError) else f"{type(error).__name__}: {error}"
        requests.answer(json.dumps({"error": reason}).encode())
        return 1
    requests.answer(json.dumps(_about(captioner)).encode())
    while (request := requests.next()) is not None:
        requests.answer(json.dumps(_answer(captioner, json.loads(request[0]), request[1])).encode())
    return 0


def _load(ref: str | None, settings: dict[str, Any], threads: int, cores: Sequence[int], device: str) -> "Captioner":
    # Before PyTorch starts its threads, which inherit this one's affinity.
    set_affinity(cores)
    import torch

    from captioning.captioner import load_captioner

    torch.set_num_threads(threads)
    given = build(ServeSettings, settings, where="the server's settings")
    return load_captioner(
        ref,
        device=device,
        precision=given.precision,
        encoder=given.encoder,
        cuda_graphs=given.cuda_graphs,
        decoding=given.decoding,
        storage=given.storage,
    )


def _about(captioner: "Captioner") -> dict[str, Any]:
    return {
        "name": captioner.name,
        "kind": captioner.model.settings.kind,
        "attention": captioner.model.has_attention,
        "decoding": to_dict(captioner.decoding),
        "preprocess": to_dict(captioner.preprocess.settings),
        "device": captioner.model.device.type,
    }


def _answer(captioner: "Captioner", asked: dict[str, Any], data: bytes) -> dict[str, Any]:
    """`results`, one per image; or the request's fault (`refused`), or an error of the captioner (`failed`)."""
    pixels = np.frombuffer(data, np.uint8).reshape(asked["shape"])
    try:
        return {"results": _results(captioner, pixels, asked["overrides"], attention=asked["attention"])}
    except CaptioningError as error:
        why = to_request_error(error)
        return {"refused": [why.status, why.error_class, why.message, why.retry_after]}
    except Exception as error:
        traceback.print_exc()
        if is_broken_gpu(error):
            os._exit(EXIT_GPU_BROKEN)  # a new process may still work
        return {"failed": f"{type(error).__name__}: {error}"}


def _results(
    captioner: "Captioner", pixels: NDArray[np.uint8], overrides: dict[str, Any], *, attention: bool
) -> list[dict[str, Any]]:
    found: list[tuple[Caption, tuple[str, ...], NDArray[np.float32] | None]]
    if attention:
        explained = captioner.explain_pixels(pixels, **overrides)
        found = [(each.caption, each.words, each.weights) for each in explained]
    else:
        captions = captioner.caption_pixels(pixels, batch_size=len(pixels), **overrides)
        found = [(caption, (), None) for caption in captions]
    return [
        {
            "caption": caption.text,
            "score": round(caption.score, 5),
            "num_tokens": caption.num_tokens,
            "alternatives": [{"caption": text, "score": round(score, 5)} for text, score in caption.alternatives],
            "words": list(words),
            "weights": None if weights is None else np.round(weights.astype(float), 5).tolist(),
        }
        for caption, words, weights in found
    ]


if __name__ == "__main__":
    sys.exit(main())
