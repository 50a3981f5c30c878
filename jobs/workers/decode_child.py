"""The process in which images are decoded: `python -m jobs.workers.decode_child`, started by `decode_process`.

It has a bound on its memory, takes one image at a time and may die of it. Nothing of Ray, PyTorch
or a store is loaded here, so that it starts in a blink.
"""

import json
import struct
import sys
from typing import Any

from captioning.config import build
from captioning.data.preprocess import Preprocess, PreprocessSettings
from captioning.errors import ImageError
from jobs.workers.child_process import Requests

#: Width, height and seconds of a decoded image, before its pixels.
DECODED_HEAD = struct.Struct("<IId")


def main() -> int:
    """Answer images until the parent is gone."""
    import time

    requests = Requests()
    start = requests.next()
    if start is None:
        return 0
    settings: dict[str, Any] = json.loads(start[0])
    to_pixels = Preprocess(build(PreprocessSettings, settings["preprocess"], where="the preprocessing"))
    _warm()
    if settings["memory_bytes"]:
        _bound_memory(settings["memory_bytes"])
    requests.answer()
    while (request := requests.next()) is not None:
        begun = time.perf_counter()
        try:
            image = to_pixels.from_bytes(request[0])
        except Exception as error:
            del request
            kind, message = _reason(error)
            requests.answer(kind.encode(), message.encode("utf-8", "backslashreplace"))
            continue
        head = DECODED_HEAD.pack(image.width, image.height, time.perf_counter() - begun)
        requests.answer(head, image.pixels.data.cast("B"), b"")
    return 0


def _reason(error: Exception) -> tuple[str, str]:
    if isinstance(error, ImageError):
        return error.error_class, error.message
    if isinstance(error, MemoryError):
        return "memory", "There is not enough memory to decode the image."
    # A decoder's own fault: a reason like any other.
    return "decode", f"{type(error).__name__}: {error}"


def _warm() -> None:
    """Load what is loaded at the first image, before memory is counted."""
    from PIL import Image

    Image.init()


def _bound_memory(extra: int) -> None:
    """Let this process have `extra` bytes more than it has now; asking for more is a `MemoryError`."""
    if sys.platform == "win32":
        return
    import resource

    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return  # macOS knows no such bound either
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + extra if hard == resource.RLIM_INFINITY else min(hard, now + extra)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    sys.exit(main())
