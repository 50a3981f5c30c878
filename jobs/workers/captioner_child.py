"""The process that captions suspect images: `python -m jobs.workers.captioner_child`, started by `isolate`.

It loads its own captioner, and may be killed by the images it is given.
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
    """Process images until the parent closes the pipe."""
    requests = Requests()
    start = requests.next()
    if start is None:
        return 0
    settings: dict[str, Any] = json.loads(start[0])
    try:
        # Safe to unpickle: from the parent process, without content of the archive or the checkpoint.
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
    """A caption or an error as JSON-compatible values."""
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
