"""The process in which suspect images are captioned: `python -m jobs.workers.captioner_child`, started by `isolate`.

It loads a captioner of its own, takes some images at a time and may die of them.
"""

import json
import pickle
import sys
from typing import Any

import numpy as np

from captioning.errors import ImageError, UnfinishedError
from jobs.workers.child_process import Requests
from jobs.workers.micro_batches import CaptionLike, MicroBatches


def main() -> int:
    """Answer images until the parent is gone."""
    requests = Requests()
    start = requests.next()
    if start is None:
        return 0
    settings: dict[str, Any] = json.loads(start[0])
    try:
        # From the parent's own memory; nothing of the archive or the checkpoint is in it.
        captioner = pickle.loads(start[1])()
    except Exception as error:
        requests.answer(f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace"))
        return 1
    batches = MicroBatches(captioner, settings["batch_size"])
    requests.answer()
    while (request := requests.next()) is not None:
        shape = json.loads(request[0])
        pixels = np.frombuffer(request[1], np.uint8).reshape(shape)
        try:
            answer = [to_json(found) for found in batches.caption(pixels)]
        except UnfinishedError as error:
            requests.answer(str(error).encode("utf-8", "backslashreplace"), b"")
            continue
        requests.answer(json.dumps(answer).encode())
    return 0


def to_json(found: CaptionLike | ImageError) -> dict[str, Any]:
    """A caption or a reason as JSON takes it."""
    if isinstance(found, ImageError):
        return {"error_class": found.error_class, "message": found.message}
    return {
        "text": found.text,
        "score": float(found.score),
        "num_tokens": int(found.num_tokens),
        "alternatives": [[text, float(score)] for text, score in found.alternatives],
    }


if __name__ == "__main__":
    sys.exit(main())
