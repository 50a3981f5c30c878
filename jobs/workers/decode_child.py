"""The process that decodes images: `python -m jobs.workers.decode_child`, started by `decode_process`.

Its memory is limited, it decodes one image at a time, and may be killed by it. It imports neither Ray, PyTorch
nor a store's client, so that it starts quickly.
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
    """Decode images until the parent closes the pipe."""
    import time

    requests = Requests()
    start = requests.next()
    if start is None:
        return 0
    settings: dict[str, Any] = json.loads(start[0])
    to_pixels = Preprocess(build(PreprocessSettings, settings["preprocess"], where="the preprocessing"))
    _warm_up()
    if settings["memory_bytes"]:
        _limit_memory(settings["memory_bytes"])
    requests.answer()
    while (request := requests.next()) is not None:
        begun = time.perf_counter()
        try:
            image = to_pixels.from_bytes(request[0])
        except Exception as error:
            del request
            error_class, message = _describe(error)
            requests.answer(error_class.encode(), message.encode("utf-8", "backslashreplace"))
            continue
        head = DECODED_HEAD.pack(image.width, image.height, time.perf_counter() - begun)
        requests.answer(head, image.pixels.data.cast("B"), b"")
    return 0


def _describe(error: Exception) -> tuple[str, str]:
    if isinstance(error, ImageError):
        return error.error_class, error.message
    if isinstance(error, MemoryError):
        return "memory", "There is not enough memory to decode the image."
    # A bug of the decoder is an error of the image as well.
    return "decode", f"{type(error).__name__}: {error}"


def _warm_up() -> None:
    """Import what the first image would import, before memory is limited."""
    from PIL import Image

    Image.init()


def _limit_memory(extra: int) -> None:
    """Allow this process `extra` bytes more than it has now; allocating more raises `MemoryError`."""
    if sys.platform == "win32":
        return
    import resource

    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return  # macOS does not support such a limit either
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + extra if hard == resource.RLIM_INFINITY else min(hard, now + extra)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    sys.exit(main())
